"""Opening sentences: templates over word lists, a form and a topic each. Opening k of seed s is always the same.

A template's fields are lists of this file. `{name}` is a person, whose pronouns are `{he}`, `{his}` and `{him}`; `{a:list}`
puts "a" or "an" before the word, `{A:list}` "A" or "An"; `{s:list}` is its plural; `{!list}` makes the first letter large. Most
openings stop within a sentence, so that the model chooses its verb and its turn.
"""

import random
import re

_TEXT = {
    "woman": """
        Anna Maria Emma Sarah Laura Julia Clara Alice Rosa Nina Helen Ruth Grace Lucy Mia Zoe Hannah Leah Eva Ella
        Nora Amy Carla Diana Elena Fiona Gina Hilda Irene Jane Karen Lena Mary Nadia Olga Paula Rita Sofia Tina Vera
        Wendy Yuki Amina Priya Fatima Ines Marta Ivy Lily Daisy Rachel Susan Teresa Molly Kate Joan Betty Carol Dora
        Edith Frances Greta Ana Layla Mei Naomi Pearl Rosie Stella Tara Beth Cora Dana Esther Flora Gloria Holly Iris
        Judith Kira Louise Mabel Norma Penny
    """,
    "man": """
        Tom Daniel David Peter Paul Mark James John Luis Carlos Omar Ali Sam Ben Max Leo Hugo Oscar Felix Adam Simon
        Martin George Henry Arthur Frank Walter Victor Ivan Marco Pablo Diego Kenji Ravi Arjun Hassan Ahmed Jack Luke
        Noah Ethan Owen Ryan Sean Kevin Brian Eric Karl Otto Nils Erik Anton Boris Chris Dennis Edward Fred Gary
        Harold Jonas Kurt Louis Miguel Nathan Oliver Patrick Ray Robert Scott Stefan Theo Tim Toby William Alan Bruno
        Cyrus Dylan Elias Finn Gus Howard Ian Joe
    """,
    "relative": """
        grandmother, grandfather, mother, father, aunt, uncle, older sister, younger brother, cousin, older brother,
        younger sister, niece, nephew, wife, husband, daughter, son, godmother, great-grandmother, stepfather
    """,
    "person": """
        neighbor, best friend, teacher, roommate, coworker, boss, classmate, old friend, landlord, coach, mail
        carrier, piano teacher, doctor, dentist, babysitter, friend from college, new neighbor, friend from work,
        first teacher
    """,
    "job": """
        baker, nurse, carpenter, farmer, fisher, librarian, teacher, mechanic, plumber, electrician, gardener, tailor,
        cook, waiter, bus driver, taxi driver, train conductor, pilot, sailor, firefighter, police officer,
        veterinarian, dentist, doctor, pharmacist, bookseller, florist, butcher, shoemaker, painter, sculptor,
        musician, photographer, journalist, translator, accountant, architect, engineer, welder, bricklayer, roofer,
        janitor, night guard, hairdresser, barber, beekeeper, shepherd, dairy farmer, winemaker, brewer, potter,
        weaver, watchmaker, jeweler, locksmith, park ranger, zookeeper, lifeguard, swimming coach, ski instructor,
        tour guide, museum guide, archaeologist, geologist, astronomer, biologist, chemist, weather forecaster, truck
        driver, crane operator, postal worker, bank clerk, shop assistant, hotel manager, flight attendant,
        programmer, web designer, music teacher, school principal, surgeon, midwife, paramedic, social worker, lawyer,
        judge, mayor, street cleaner, window cleaner, tree surgeon, ferry captain, lighthouse keeper, piano tuner
    """,
    "animal": """
        dog, cat, horse, cow, goat, sheep, pig, donkey, rabbit, hamster, parrot, canary, owl, eagle, hawk, crow,
        sparrow, robin, swallow, stork, heron, duck, goose, swan, chicken, turkey, peacock, penguin, flamingo,
        ostrich, pigeon, woodpecker, hummingbird, bat, mouse, rat, squirrel, beaver, hedgehog, fox, wolf, bear, polar
        bear, panda, lion, tiger, leopard, cheetah, elephant, giraffe, zebra, hippo, rhino, camel, llama, kangaroo,
        koala, monkey, gorilla, chimpanzee, sloth, otter, seal, sea lion, walrus, dolphin, whale, shark, octopus,
        squid, crab, lobster, jellyfish, starfish, salmon, trout, eel, goldfish, turtle, tortoise, frog, toad, lizard,
        chameleon, snake, crocodile, alligator, bee, wasp, ant, butterfly, moth, dragonfly, beetle, ladybug,
        grasshopper, cricket, spider, scorpion, snail, earthworm, firefly, moose, deer, bison, raccoon, skunk, badger,
        mole, weasel, puffin, seagull, pelican, albatross, seahorse, manta ray, lynx, coyote, hyena, meerkat,
        armadillo
    """,
    "pet": """
        dog, cat, puppy, kitten, rabbit, hamster, parrot, turtle, goldfish, guinea pig, canary, old dog, gray cat,
        black cat, pony, duck, white rabbit, stray dog, stray cat, little dog
    """,
    "food": """
        bread, rice, noodles, soup, stew, salad, pizza, pancakes, omelet, cheese, yogurt, butter, jam, honey,
        chocolate, apple pie, cake, cookies, ice cream, pudding, dumplings, curry, tacos, beans, lentils, potatoes,
        mashed potatoes, roast chicken, grilled fish, sandwiches, pasta, lasagna, porridge, oatmeal, granola, popcorn,
        pickles, sauerkraut, olives, tomato sauce, mushroom soup, onion soup, chicken soup, vegetable soup, pumpkin
        soup, fried eggs, scrambled eggs, banana bread, corn bread, flat bread, biscuits, muffins, waffles, doughnuts,
        meatballs, sausages, ham, stuffed peppers, baked beans, risotto, sushi, spring rolls, fruit salad, potato
        salad, coleslaw, hummus, guacamole, peanut butter, maple syrup, lemonade, tea, coffee, hot chocolate, apple
        juice, smoothies, ginger tea, mint tea, cider
    """,
    "dish": """
        vegetable soup, tomato soup, apple pie, banana bread, pancakes, an omelet, fried rice, lentil stew, chicken
        curry, roast potatoes, a green salad, a fruit salad, pasta with tomato sauce, macaroni and cheese, meatballs,
        a simple pizza, corn bread, oatmeal cookies, chocolate cake, a lemon tart, rice pudding, mashed potatoes,
        stuffed peppers, baked salmon, bean tacos, pumpkin soup, garlic bread, mushroom risotto, potato salad,
        coleslaw, hummus, guacamole, scrambled eggs, French toast, waffles, blueberry muffins, carrot cake, strawberry
        jam, pickled cucumbers, lemonade, iced tea, hot chocolate, chicken soup, beef stew, vegetable lasagna, spinach
        pie, onion soup, noodle soup, shrimp with garlic, cheese sandwiches, peach cobbler, gingerbread, bread
        pudding, applesauce, peanut noodles, chickpea salad, zucchini bread, cabbage rolls
    """,
    "ingredient": """
        onions, garlic, carrots, tomatoes, potatoes, mushrooms, spinach, cabbage, beans, lentils, rice, eggs, flour,
        butter, milk, cheese, cream, olive oil, lemons, apples, bananas, strawberries, blueberries, peaches, pears,
        honey, sugar, salt, pepper, cinnamon, ginger, basil, parsley, mint, rosemary, peppers, cucumbers, zucchini,
        pumpkin, corn, peas, nuts, oats
    """,
    "thing": """
        bicycle, radio, clock, lamp, umbrella, camera, mirror, window, door, table, chair, bed, blanket, pillow,
        suitcase, backpack, pencil, notebook, map, compass, telescope, candle, kettle, teapot, frying pan, knife,
        spoon, cup, bottle, basket, ladder, hammer, saw, screwdriver, rope, bucket, broom, shovel, wheelbarrow, lawn
        mower, sewing machine, washing machine, oven, fan, heater, guitar, piano, violin, drum, flute, trumpet,
        painting, photograph, letter, book, dictionary, newspaper, ticket, coin, key, lock, ring, necklace, watch,
        scarf, hat, coat, shoe, glove, button, needle, box, drawer, bookshelf, rug, vase, doll, kite, ball, chess set,
        puzzle, toy train, sled, skateboard, boat, tent, lantern, fishing rod, telephone, typewriter, record player,
        television, computer, calculator, battery, magnet, thermometer, globe, bell, rocking chair
    """,
    "device": """
        bicycle, refrigerator, microwave oven, washing machine, vacuum cleaner, telescope, microscope, camera, clock,
        thermometer, compass, magnet, battery, light bulb, solar panel, wind turbine, water wheel, windmill, steam
        engine, car engine, airplane, helicopter, hot air balloon, submarine, sailboat, elevator, escalator, bridge,
        crane, lever, pulley, lock, zipper, sewing machine, printing press, ballpoint pen, pencil, telephone, radio,
        television, loudspeaker, microphone, piano, guitar, violin, drum, candle, fireplace, kettle, pressure cooker,
        toaster, oven, dishwasher, hair dryer, electric fan, air conditioner, water filter, toilet, pump, greenhouse,
        mirror, pair of glasses, magnifying glass, X-ray machine, hearing aid, smoke detector, fire extinguisher,
        traffic light, parachute, kite, boomerang, yo-yo, seesaw, roller coaster, lighthouse, dam, canal lock, well,
        barometer, scale, calculator, keyboard, computer mouse, printer, bar code, credit card
    """,
    "nature": """
        rain, snow, thunder, lightning, wind, fog, frost, dew, hail, clouds, rainbows, tides, waves, rivers, lakes,
        waterfalls, glaciers, icebergs, volcanoes, earthquakes, mountains, valleys, caves, deserts, sand dunes,
        islands, coral reefs, forests, swamps, meadows, soil, seeds, flowers, leaves, roots, trees, mushrooms, moss,
        grass, the moon, the sun, the stars, the planets, comets, eclipses, the seasons, sunsets, shadows, echoes,
        gravity, magnetism, heat, sound, light, static electricity, rust, crystals, salt, coal, clay, gold, diamonds,
        oxygen, bubbles, the northern lights, hibernation, migration, pollination, photosynthesis, evaporation,
        erosion, fossils, the water cycle, the food chain, hurricanes, tornadoes
    """,
    "body": """
        the heart, the lungs, the brain, the stomach, the skin, the eyes, the ears, the nose, the tongue, bones,
        muscles, teeth, hair, blood, sleep, dreams, memory, hunger, thirst, sweating, sneezing, yawning, hiccups,
        laughter, crying, blushing, pain, fever, balance, taste, smell, touch, breathing, digestion, growth, aging,
        the immune system, fingerprints, reflexes
    """,
    "why": """
        the sky is blue, leaves change color in the fall, birds sing in the morning, cats purr, dogs wag their tails,
        ice floats on water, bread rises, the sea is salty, we yawn, we dream, onions make us cry, bees make honey,
        salmon swim upstream, birds fly south, the moon changes shape, stars twinkle, metal feels cold, soap cleans,
        popcorn pops, iron rusts, flowers smell sweet, snakes shed their skin, bats hang upside down, cheese has
        holes, coffee keeps us awake, exercise feels good, music makes us move, people collect things, children ask so
        many questions, people keep diaries, towns grow near rivers, some people are left-handed, bread goes stale,
        milk turns sour, bicycles stay upright, airplanes stay in the air, balloons rise, the wind blows, deserts are
        dry, mountains have snow on top, rivers bend, the days are longer in summer, honey lasts so long, cities are
        warmer than the countryside, people like to travel, we shake hands, many people are afraid of spiders, cats
        like boxes, plants need light, we need sleep, people whistle while they work, old books smell so good
    """,
    "skill": """
        bake bread, ride a bicycle, swim, play the piano, play the guitar, knit, sew a button, draw a face, paint with
        watercolors, take good photographs, grow tomatoes, plant a tree, keep bees, train a dog, care for a cat, ride
        a horse, catch a fish, build a campfire, pitch a tent, read a map, tie a knot, sail a small boat, ski, skate,
        play chess, juggle, whistle, sing in a choir, dance the waltz, speak in public, learn a language, write a
        letter, write a short story, keep a diary, fix a flat tire, paint a room, hang a picture, sharpen a knife,
        make soup, brew coffee, make jam, fold a paper airplane, fly a kite, build a birdhouse, save money, plan a
        trip, pack a suitcase, make friends, listen well, sleep better, stop worrying, wake up early, remember names,
        study for a test, clean a kitchen, iron a shirt, cut hair, wrap a present, carve wood, make pottery, make
        candles, start a garden, make compost, prune roses, press flowers, watch birds
    """,
    "hobby": """
        gardening, knitting, birdwatching, photography, painting, pottery, woodworking, baking, cooking, hiking,
        camping, fishing, swimming, running, cycling, chess, reading, writing poems, playing the guitar, playing the
        piano, singing in a choir, dancing, yoga, stamp collecting, coin collecting, model trains, sailing, skiing,
        skating, rock climbing, horse riding, beekeeping, astronomy, drawing, sewing, quilting, weaving, origami,
        juggling, card games, board games, crossword puzzles, learning languages, restoring old furniture, repairing
        bicycles, collecting shells, pressing flowers, kite flying, archery, volunteering, walking the dog, watching
        old films, table tennis, tennis, soccer, basketball, volleyball, rowing, surfing
    """,
    "sport": """
        soccer, basketball, tennis, swimming, running, cycling, volleyball, table tennis, baseball, hockey, rugby,
        badminton, gymnastics, rowing, skiing, skating, climbing, judo, boxing, golf, cricket, handball, archery,
        fencing, surfing, wrestling
    """,
    "town": """
        Ashford, Brookfield, Cedar Falls, Dunmore, Eastbrook, Fairview, Glenwood, Harborview, Ironton, Juniper Hill,
        Kingsbury, Lakeside, Millbrook, Northfield, Oakridge, Pinewood, Quarry Bay, Riverton, Stonebridge, Thornbury,
        Upton, Valley Springs, Westport, Yarrow, Alder Creek, Bellmont, Clearwater, Driftwood, Elmwood, Foxhollow,
        Greenville, Hazelton, Maplewood, Newhaven, Orchard Park, Port Amber, Redhill, Saltmarsh, Summerfield, Twin
        Rivers, Whitecliff, Willow Bend, Windmere, Birchwood, Copper Ridge, Dovecote, Fernvale, Goldcrest, Heathfield,
        Larkspur, Marlow, Old Mill, Rosedale, Sandy Point
    """,
    "country": """
        Japan, India, Brazil, Mexico, Kenya, Egypt, Morocco, Turkey, Greece, Italy, Spain, Portugal, France, Germany,
        Poland, Norway, Sweden, Finland, Iceland, Ireland, Scotland, Canada, Peru, Chile, Argentina, Colombia, Cuba,
        Vietnam, Thailand, Korea, China, Nepal, Indonesia, Australia, New Zealand, South Africa, Ghana, Ethiopia,
        Tanzania, Jordan, Hungary, Austria
    """,
    "place": """
        village, fishing village, small town, harbor, market, old market, library, bakery, bookshop, cafe, train
        station, bus station, airport, hotel, inn, farm, orchard, vineyard, garden, park, playground, school,
        university, hospital, museum, theater, cinema, church, temple, castle, bridge, lighthouse, beach, island,
        lake, river, waterfall, forest, meadow, mountain, valley, cave, desert, canyon, swamp, cabin, cottage,
        apartment, attic, cellar, kitchen, workshop, garage, barn, greenhouse, factory, mill, mine, quarry, office,
        post office, bank, pharmacy, barber shop, supermarket, square, narrow street, alley, rooftop, courtyard,
        balcony, zoo, aquarium, stadium, swimming pool, campground, cemetery, hill, bay, pier, dock
    """,
    "eatery": """
        restaurant, cafe, bakery, small restaurant, hotel, inn, market, snack bar, pizza place, tea room, noodle shop,
        diner, school cafeteria, coffee shop, food stall, bus station cafe
    """,
    "home": """
        village, small town, fishing village, large city, cabin, cottage, apartment, old house, farmhouse, mountain
        village, port city, suburb, house by the sea, tall building, houseboat
    """,
    "workplace": """
        library, bakery, bookshop, cafe, hotel, farm, garden center, school, hospital, museum, theater, cinema,
        factory, post office, bank, pharmacy, barber shop, supermarket, zoo, aquarium, swimming pool, train station,
        airport, restaurant, flower shop, bicycle shop, toy store, hardware store, furniture shop, clinic, dairy,
        sawmill, print shop, radio station
    """,
    "outdoors": """
        lake, river, waterfall, forest, meadow, mountain, beach, cave, canyon, hill, bay, park, orchard, vineyard,
        pond, valley, stream, field, garden, old bridge, lighthouse, swamp, dunes, cliff, harbor
    """,
    "small": """
        mouse, frog, spider, bat, snail, cricket, butterfly, moth, beetle, ladybug, kitten, lizard, turtle, bee,
        sparrow, wasp, snake
    """,
    "visitor": """
        deer, rabbit, fox, hedgehog, snail, squirrel, mole, raccoon, crow, stray cat, toad, robin, badger, skunk,
        mouse
    """,
    "inside": "quiet, cold, dark, warm, noisy, crowded, bright, cool, dusty, empty, busy, calm",
    "wear": """
        hat, scarf, coat, watch, ring, sweater, jacket, dress, shirt, tie, apron, necklace, cap, pair of boots, pair
        of shoes, pair of glasses, raincoat, vest
    """,
    "repair": """
        bicycle, radio, clock, lamp, umbrella, chair, table, kettle, window, door, toy train, guitar, coat, shoe,
        fence, lawn mower, drawer, roof, fan, sewing machine, rocking chair, kite, tent, fishing rod, watch, necklace,
        lock, bookshelf, doll
    """,
    "ballgame": """
        soccer, basketball, tennis, volleyball, table tennis, baseball, hockey, rugby, badminton, cricket, handball
    """,
    "placeadj": """
        old, small, quiet, busy, empty, narrow, sunny, dark, cold, warm, crowded, dusty, clean, noisy, little, large,
        forgotten, famous, abandoned, peaceful, tidy, messy, colorful, plain, modern, ancient, cozy, windy, shady,
        lonely, friendly, new
    """,
    "adj": """
        old, small, red, blue, green, yellow, white, black, gray, brown, wooden, broken, new, heavy, rusty, dusty,
        beautiful, simple, expensive, cheap, large, worn, handmade, borrowed, forgotten, used, lovely, special
    """,
    "feeling": """
        happy, sad, nervous, proud, tired, lonely, curious, angry, afraid, calm, grateful, excited, surprised, bored,
        confused, hopeful, jealous, homesick, relieved, embarrassed, cheerful, worried, shy, brave
    """,
    "trait": """
        patient, kind, stubborn, quiet, cheerful, honest, clever, lazy, generous, shy, curious, careful, forgetful,
        brave, strict, gentle, proud, modest, funny, serious, hardworking, thoughtful, nervous, calm, restless, loyal,
        polite, talkative
    """,
    "weather": """
        rainy, sunny, windy, foggy, snowy, stormy, cold, hot, warm, cloudy, gray, bright, misty, frosty, mild, humid,
        quiet
    """,
    "season": "spring, summer, autumn, winter",
    "month": "January, February, March, April, May, June, July, August, September, October, November, December",
    "weekday": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "daytime": "morning, afternoon, evening",
    "number": "two, three, four, five, six, seven, eight, nine, ten, twelve, fifteen, twenty, thirty, forty",
    "event": """
        market, flower show, book fair, music festival, harvest festival, school play, art exhibition, cooking
        contest, bicycle race, charity run, chess tournament, soccer match, street parade, wedding, birthday party,
        concert, bake sale, garage sale, film night, dance, picnic, science fair, boat race, lantern festival, winter
        fair, town meeting, open day, spelling bee, talent show, cleanup day, tree planting day, story hour, pie
        contest, fishing contest, pet show, kite festival, reunion
    """,
    "project": """
        a new library, a new bridge, a bicycle path, a playground, a community garden, a bus line, a swimming pool, a
        museum, a school, a health clinic, a youth center, a skate park, a footbridge, a farmers market, a recycling
        center, a fire station, a wind farm, a solar park, a bakery, a train station, a nature trail, a public
        orchard, a music school, an animal shelter
    """,
    "problem": """
        a leaking roof, a broken window, a flat tire, a lost key, a missing cat, a power cut, a flooded cellar, a late
        train, a noisy neighbor, a broken oven, a dead battery, a wrong address, a torn coat, a stuck door, a lost
        letter, a burned dinner, an empty fridge, a missed bus, a stubborn stain, a slow computer, a squeaky floor, a
        locked gate, a fallen tree, a forgotten birthday, a broken promise, a bad grade, a rumor, a cold, a long line,
        a muddy road, an unpaid bill
    """,
    "gift": """
        book, scarf, sweater, box of chocolates, plant, photograph, painting, basket of apples, jar of honey, jar of
        jam, cake, watch, tea set, map, recipe, postcard, record, kite, puzzle, notebook, pair of gloves, bracelet,
        lamp, blanket, bottle of wine
    """,
    "topic": """
        friendship, family, money, work, school, sleep, exercise, food, water, travel, music, art, books, films,
        games, sports, weather, gardens, animals, birds, trees, the sea, mountains, cities, villages, houses,
        kitchens, clothes, shoes, colors, numbers, languages, maps, letters, newspapers, radio, trains, bicycles,
        cars, ships, airplanes, bridges, roads, markets, shops, festivals, birthdays, weddings, holidays, childhood,
        old age, neighbors, teachers, doctors, farmers, cooking, baking, coffee, tea, sleep, dreams, memory, habits,
        patience, kindness, honesty, courage, time, silence, change, luck, mistakes, promises, secrets, stories,
        photographs, tools, machines, computers, phones, plants, flowers, insects, soil, stars, the moon, rivers,
        islands, rain, snow, light, sound, health, safety, learning, reading, writing, walking, laughter
    """,
    "invention": """
        the bicycle, the telephone, the printing press, the steam engine, the light bulb, the camera, the airplane,
        the radio, the sewing machine, paper, glass, the wheel, the clock, the compass, the telescope, the microscope,
        the refrigerator, the railway, the canal, the plow, money, the alphabet, the calendar, the piano, the pencil,
        soap, bread, cheese, chocolate, coffee, tea, sugar, salt, silk, cotton, rubber, steel, concrete, plastic,
        vaccines, anesthesia, the zipper, the umbrella, the postage stamp, the newspaper, the public library, the
        elevator, the automobile, the computer, the internet
    """,
    "subject": """
        history, geography, biology, chemistry, physics, music, art, math, poetry, spelling, drawing, astronomy,
        gardening, cooking, Spanish, French, Latin, geometry, woodwork, drama
    """,
    "plant": """
        rose, tulip, sunflower, daisy, lavender, basil, mint, tomato plant, potato, carrot, bean, pumpkin, apple tree,
        cherry tree, oak, maple, birch, pine, willow, olive tree, lemon tree, fig tree, palm, bamboo, cactus, fern,
        ivy, orchid, lily, daffodil, strawberry, blueberry bush, grape vine, corn, wheat, rice, cotton, tea plant,
        coffee plant, cocoa tree, dandelion, clover, seaweed, water lily, thistle, violet, poppy, geranium, aloe
    """,
    "vehicle": """
        train, bus, ferry, bicycle, car, old truck, small plane, sailboat, taxi, tram, motorcycle, night train, van
    """,
    "wish": """
        to see the ocean, to learn to swim, to open a bakery, to play the violin, to travel by train, to live in the
        mountains, to write a book, to grow her own food, to fly a plane, to own a horse, to build a boat, to climb a
        mountain, to speak French, to become a teacher, to be a painter, to run a marathon, to keep bees, to live
        alone, to have a garden, to go to college, to learn to cook, to sing on a stage, to work with animals, to
        visit Japan, to find an old friend, to paint the kitchen
    """,
    "room": """
        kitchen, living room, bedroom, attic, cellar, garden, garage, hallway, bathroom, workshop, classroom, office,
        library
    """,
    "clock": "five, six, seven, eight, nine, ten, eleven, four",
    "old": "five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, sixteen",
    "age": "sixty, seventy, eighty, ninety, forty, fifty, thirty, twenty",
}


def _split(words: str) -> list[str]:
    parts = words.split(",") if "," in words else words.split()
    return list(dict.fromkeys(" ".join(part.split()) for part in parts))


LISTS = {name: _split(words) for name, words in _TEXT.items()}
LISTS["wish"] = [wish.replace("her own", "some") for wish in LISTS["wish"]]

FORMS = {
    "day": """
        On {weekday} {daytime}, {name}
        It was a {weather} {daytime} in {month}, and {name}
        Every {daytime}, my {relative}
        On {weekday}s, I usually
        {name} woke up at {clock} o'clock and
        Last {weekday}, I spent the whole {daytime}
        The {daytime} was {weather}, so we
        Yesterday I went to the {place} with my {relative}
        Today was my first day as {a:job}. I
        After work, {name} likes to
        My day usually starts with {food}. Then I
        Before breakfast, {name} went out to
        On the last day of {month}, {name} and {his} {relative}
        It was {name}'s day off, and {he} decided to
        I had planned to stay at home on {weekday} to {skill}, but
        For lunch, {name} had {food} and
        We spent a {weather} {weekday} at the {place}.
        In the {season}, our family gets up at {clock} o'clock. We
        A normal day in the life of {a:job} begins
        At {clock} o'clock in the evening, the {place} was
    """,
    "memory": """
        When I was {old} years old, my {relative}
        I still remember the {weather} {daytime} when
        I remember the first time I tried to {skill}.
        One {season}, my {relative} taught me how to {skill}.
        When I was a child, we had {a:pet} that
        My earliest memory of the {place} is
        The {season} I turned {old}, we
        I will never forget the {adj} {thing} that
        As a child in {town}, I used to
        My {relative} often told me about the time
        Many years ago, my {relative} and I
        In our house, there was always {a:adj} {thing} that
        I learned to {skill} when I was {old}.
        I was {feeling} the day my {relative}
        The best birthday present I ever got was {a:adj} {thing}.
        At school, my favorite subject was {subject}. The teacher
        There was {a:placeadj} {place} near the house where I grew up.
        When I think of my childhood, I think of {food} and
        My {person} and I first met at the {place}.
        Looking back, I was too {trait} to
    """,
    "how it works": """
        {name} wanted to know how {a:device} works.
        {A:job} explained to the children how {a:device} works.
        At the museum in {town}, {name} learned how {a:device} works.
        My {relative} once took apart {a:device} to see
        The first time {name} saw {a:device}, {he}
        We have {a:adj} {device} at home. It
        In {country}, almost every house has {a:device} that
        {name} asked {his} {relative} to explain {nature}.
        In {subject} class, {name} learned about {body}.
        My {relative} cannot live without a {device} because
        {A:device} works by
        To understand how {a:device} works,
        The main parts of {a:device} are
        Inside {a:device}, there is
        When you use {a:device},
        {A:device} may look simple, but
        The idea behind the {device} is
        People often wonder how {a:device} works. In short,
        Without {a:device},
        The {device} was invented
        One of the most useful things about the {device} is
        A good {device} should
        If {a:device} stops working,
        Scientists study {nature} because
        {!nature} can be explained in a simple way.
        The way {body} works is
        In the human body, {body}
        A person who wants to learn about {body} should
        Most people know something about {nature}, but
    """,
    "explanation": """
        {name} asked {his} {relative} why {why}.
        In {subject} class, we learned why {why}.
        My {relative} explained to me why {why}.
        On {a:weather} {weekday}, {name} wondered why {why}.
        The {job} told us why {why}.
        The people of {country} have an old saying about {topic}.
        My {relative} knows a lot about {topic} and
        The difference between {food} and {food} is
        For {a:job}, {topic} is
        There is a simple reason why {why}.
        Have you ever wondered why {why}?
        Many people ask why {why}.
        The reason why {why} is
        Scientists have found out why {why}.
        Children often ask their parents why {why}.
        Nobody knew why {why} until
        It may seem strange that {why}, but
        One way to explain why {why} is
        It is well known that {why}. This happens because
        {!topic} can teach us
        There are many kinds of {food}. Some
        The word for {topic} is different in every language, but
        {!topic} is important because
        People have always been interested in {topic}.
        What makes {a:plant} different from {a:plant} is
        {!nature} can be seen in many parts of the world.
    """,
    "recipe": """
        On {weekday}s, my {relative} cooks {food} with {ingredient}.
        {name} learned to make {dish} from {his} {relative}.
        For the {event}, {name} made {dish} with
        To make {dish}, you need
        My {relative}'s recipe for {dish} is simple.
        The secret of good {food} is
        To make {dish} for four people, first
        If you have some {ingredient} left, you can
        On {weather} days, I like to cook {dish}.
        {name} makes the best {food} in town. First, {he}
        In {country}, {food} is often
        Before you cook {ingredient}, you should
        Start by cutting the {ingredient} into small pieces. Then
        Heat some oil in a large pan and add the {ingredient}.
        Mix the {ingredient} with {ingredient} in a large bowl.
        {!food} tastes best when
        When the {ingredient} are soft, add
        The first time I made {dish},
        For a quick dinner, try
        In our kitchen, {food} is always
        You do not need an oven to make {food}.
        Fresh {ingredient} should be
    """,
    "letter": """
        Dear {name}, thank you for the {gift} that you sent me.
        Dear {name}, I am writing to tell you about
        Dear {name}, we arrived in {town} on {weekday}.
        Dear {relative}, I hope you are well. Here
        Dear {name}, I am sorry that I did not write sooner.
        Dear neighbor, our {pet}
        Dear {name}, last {weekday} we went to the {place}.
        Dear {name}, I heard that you are
        Dear {name}, it has been {weather} here in {town}.
        Dear {name}, I have some good news.
        Dear {name}, do you remember the {season} when we
        Dear {name}, I started my new job as {a:job}.
        Dear {name}, your {gift} arrived today.
        Dear {name}, I would like to invite you to
        Dear {person}, I want to thank you for
        In his letter, {man} wrote that
        The letter from {name} said that
        On the back of the postcard, {name} had written that
        {name} wrote a long letter to {his} {relative}. In it, {he}
    """,
    "news": """
        The town of {town} will open {project}
        The people of {town} have decided to build {project}.
        Last {weekday}, the {event} in {town}
        More than {number} people came to the {event} in {town}.
        {A:job} from {town} has
        The {placeadj} {place} in {town} will
        After {number} years, the {place} in {town}
        A storm hit the town of {town} on {weekday}.
        The mayor of {town} announced that
        Students from {town}
        This {season}, visitors to {town}
        Farmers near {town} say that
        A lost {pet} was found near the {place} in {town}.
        Volunteers in {town} spent {weekday}
        The annual {event} in {town} will take place
        Residents of {town} woke up to
        {A:age}-year-old {job} from {town}
        The bus between {town} and {town}
        A new {workplace} opened in {town} this {month}.
        The {town} {sport} team
        The school in {town} has started
        In {town}, {a:job} named {name}
    """,
    "place": """
        {town} is {a:placeadj} town
        {town} lies between
        The {placeadj} {place} stands
        The {place} at the end of our street is
        There is {a:placeadj} {place} in {town} where
        From the top of the hill in {town}, you can see
        In the middle of the {place}, there was
        The {place} in {town} is known for
        Inside the {workplace}, it was {inside} and
        In {season}, the {place} is
        If you walk along the river in {town}, you
        Our {home} is small, but
        Nobody had lived in the {placeadj} {home} for {number} years.
        My favorite place in {town} is the {place}.
        The {place} was {placeadj}, with
        Behind the {place}, there is
        A visitor to {country} will
        The coast of {country} is
        In the {daytime}, the streets of {town} are
        The road to {town} goes through
        The houses in {town} are
    """,
    "animal": """
        The {animal} is one of
        {A:animal} spends most of its time
        {A:animal} can
        Unlike other animals, the {animal}
        The {animal} lives in
        A young {animal}
        In winter, the {animal}
        {A:animal} eats
        We saw {a:animal} near the {outdoors}.
        The {animal} has
        Many people are afraid of the {animal}, but
        In {country}, the {animal} is
        Our {pet} likes to
        When {name} found {a:small} in the {room}, {he}
        Farmers know that {a:animal}
        The {pet} next door
        The easiest way to see {a:animal} is
        People who keep {a:pet} should
        Early in the {daytime}, the {animal}
        My {relative}'s {pet} is
    """,
    "advice": """
        My {person} showed me how to {skill}.
        {name} gave {his} {relative} some advice on how to {skill}.
        If you are {feeling} and want to {skill},
        {name} wants to {skill}. Every {job} says that
        {A:job} from {town} gave us some good advice about {topic}.
        The {job} told {name} never to
        When you feel {feeling} on {a:weather} {daytime},
        My {relative} taught me that {topic}
        If you want to become {a:job}, you should
        If you want to {skill}, you should
        The best way to {skill} is to
        When you {skill}, always
        Before you {skill}, make sure
        Many people find it hard to {skill}. It helps to
        Here is some advice for anyone who wants to {skill}.
        If you feel {feeling}, try to
        My {relative} always said that
        If you have {problem}, do not
        A good way to start {hobby} is
        When {a:visitor} comes into your garden,
        To keep your {thing} in good condition,
        Never buy {a:thing} before you
        It is never too late to {skill}.
        When you visit {country}, remember to
        If your {pet} is sick,
        A friend who is {feeling} may need
        You can save money on {food} by
        One of the hardest things about {hobby} is
        The most common mistake when people {skill} is
        On a {weather} day, it is wise to
        A few small changes can make your {room}
        The first rule of {hobby} is
    """,
    "story": """
        {name} found {a:adj} {thing} in the {room}.
        One {daytime}, {a:pet} followed {name} home.
        {name} was {feeling} because
        {name} had never seen {a:animal} before.
        There was a knock at the door, and {name}
        On the way to the {place}, {name} met
        {name} and {his} {relative} were walking through the {place} when
        {name} lost {his} {thing} at the {place}.
        The {job} looked at the {adj} {thing} and
        {name} opened the {adj} box and found {a:thing}. {!he}
        {name} had {problem}. {!he}
        For {number} years, {name} had worked as {a:job}.
        {name} did not want to go to the {event}, but
        The children were playing in the {place} when
        {name} moved to {town} in the {season}.
        {A:job} named {name}
        {name} had always wanted {wish}.
        The {vehicle} stopped, and {name}
        Nobody in {town} believed {name} when
        Late in the {daytime}, the {job} heard
        {name} promised {his} {relative} that
        {name} borrowed {a:thing} from {his} {person}.
        When the lights in the {place} went out, {name}
        It was the day of the {event}, and {name}
        {name} could not find the {thing}. {!he}
        {name}'s {pet} ran away on a {weather} {daytime}.
        The {adj} {thing} had belonged to {name}'s {relative}.
        {name} sat down next to {a:job} who
    """,
    "person": """
        My {relative} is {a:job} who
        {name} works as {a:job} in {town}.
        My {person} {name} is a {trait} person who
        {name} is {trait} and
        My {relative} is {age} years old and
        Everyone in {town} knows {name}, the {job}.
        As {a:job}, {name}
        {name} has lived in {town} for {number} years.
        My {person} can {skill} better than
        {name} grew up in {country}, where
        The {job} on our street is
        My {relative} loves {hobby}.
        {name} never eats {food} because
        {name} wears {a:adj} {wear} that
        People say that {name} is too {trait}, but
        {name} became {a:job} after
        {name}, who is {age}, still
        My {relative} and my {relative} met
        What I admire about my {relative} is
        {name} speaks three languages and
        {name} is famous in {town} for {his} {food}.
    """,
    "hobby": """
        {!hobby} is a good hobby for
        I started {hobby} because
        {name} discovered {hobby} when {he}
        What I like about {hobby} is
        You do not need much to start {hobby}. All
        Our {hobby} club meets every {weekday}.
        On weekends, {name} and {his} {relative} enjoy {hobby}.
        {name} learned to {skill} from {his} {relative}.
        It took {name} {number} weeks to learn to {skill}.
        The {adj} {thing} that {name} made
        In our {sport} club in {town}, we
        The {ballgame} match between {town} and {town}
        {name} has played {sport} since
        In the last minute of the {ballgame} game, {name}
        My collection of {s:thing} started with
        {name} spent the {season} learning to {skill}.
        {!hobby} and {hobby} are
        For people who enjoy {hobby},
        {!sport} is a sport that
        The book that I am reading is about {a:job} who
    """,
    "work": """
        {A:job} has to
        The work of {a:job} is
        To become {a:job},
        When I worked as {a:job}, I
        The hardest part of being {a:job} is
        {A:job} gets up early because
        In the {season}, {a:job} usually
        {A:job} needs good tools, such as
        Most people do not know that {a:job}
        My first job was at the {workplace}. I
        At the {workplace}, we work from {clock} o'clock
        The new {job} at the {workplace}
        {name} quit {his} job as {a:job} and
        {A:job} and {a:job} often work together.
        {name} repaired the {adj} {repair} by
        A hundred years ago, {a:job}
        {name} opened {a:workplace} in {town}.
        The meeting started at {clock} o'clock, and
        Our shop sells {food} and
        The customers of the {workplace}
    """,
    "travel": """
        We took the {vehicle} to {town} and
        Last {season}, I traveled to {country} with my {relative}.
        The journey from {town} to {town} takes
        {name} packed {his} suitcase with
        The {vehicle} was late, so
        In {country}, we stayed in {a:home}.
        On our second day in {country}, we
        The {vehicle} left {town} at {clock} o'clock.
        A trip to {country} is
        The best time to visit {country} is
        We got lost on the way to the {place}.
        From the window of the {vehicle}, {name} could see
        {name} had never left {town} before.
        During the trip, we ate {food} and
        When we arrived at the {place}, it was
        The island can only be reached by {vehicle}.
        We camped near the {outdoors} for {number} nights.
        The hotel in {town} was
        At the border of {country}, {name}
        Traveling by {vehicle} is
    """,
    "seasons": """
        In {month}, the days
        The first snow fell in {month}.
        {!season} is my favorite season because
        In {season}, the fields around {town}
        After weeks of {weather} weather,
        A {weather} wind
        The {season} of that year was
        When {season} comes, people in {town}
        In the garden, the {plant}
        {A:plant} needs
        The {plant} grows best in
        To grow {a:plant},
        {name} planted {a:plant} behind the {place}.
        The {plant} in front of our house
        The leaves of the {plant} are
        After the storm, the {place} was
        The sky over the {outdoors} turned
        On a clear night in {town}, you can see
        Under the {plant}, there
        The weather in {country} is
    """,
    "history": """
        Before people had {invention}, they
        The history of {invention} goes back to
        {!invention} changed the way people
        A hundred years ago, {town} was
        In the old days, {food} was
        Long ago, people in {country}
        {!invention} was first used
        The first people who made {food}
        In the past, {a:job}
        The {place} in {town} was built
        For hundreds of years, people have used {invention} to
        When {invention} came to {town},
        My {relative} lived through a time when
        The story of {invention} begins in
        Nobody knows exactly when {invention}
        The old {thing} in the museum shows
        In the nineteenth century, {a:job}
    """,
    "object": """
        The {adj} {thing} in the {room}
        {A:adj} {thing} lay on the table.
        This {thing} belonged to
        I bought {a:adj} {thing} at the market.
        On the wall of the {room}, there is
        My {relative} gave me {a:adj} {thing}.
        {A:thing} is useful when
        The {thing} is made of
        There are many kinds of {s:thing}. Some
        The {thing} that I use every day
        In the shop window, {name} saw {a:adj} {thing}.
        {A:adj} {thing} can
        A good {thing} does not have to be expensive. It
        The price of {a:thing} depends on
        We keep the {thing} in the {room} because
        The {repair} was broken, so {name}
        What should you do with {a:adj} {thing}?
        {name} collects {adj} {s:thing} and
    """,
    "school": """
        Our {subject} teacher
        In {subject} class, we learned about {nature}.
        The students at the school in {town}
        For the science fair, {name} built
        {name} was {feeling} before the {subject} test.
        On the school trip to the {place}, the children
        The {subject} teacher asked the class why {why}.
        {name} did not like {subject} until
        Learning {subject} is easier when
        At the school library, {name} found a book about
        The new student came from {country} and
        Today the class talked about {topic}.
        During the {subject} class, the children
        {name} and {name} were best friends at school.
        A good teacher knows that
        My homework was to write about {topic}.
        The children in the first grade in {town}
        After school, {name} goes to
        In our school, we have {a:adj} {thing} that
    """,
    "opinion": """
        I think that {topic}
        I have never liked {food}, but
        The new {eatery} in {town} serves
        The {event} was better than
        I recently read a book about {topic}.
        We watched a film about {a:job} who
        In my opinion, {hobby} is
        Some people think {topic} is
        I used to think that {topic}
        The food at the {eatery} was
        Living in {a:home} has
        Is it better to live in {a:home} or in {a:home}?
        I prefer {season} to {season} because
        I prefer {food} to {food} because
        {name} and {name} do not agree about
        There is nothing better than {food} on a {weather} {daytime}.
        I am grateful for my {relative} and
        What I miss most about {town} is
        If I had more time for {hobby}, I would
    """,
    "problem": """
        When {name} noticed {problem}, {he}
        The problem with the {thing} was
        {name} solved the problem by
        The neighbors complained about
        {name} made a mistake when {he}
        At first, nobody knew what to do about
        {name} tried to fix the {repair}, but
        We were out of {food}, so
        The town of {town} had a problem with
        {name} had only {number} dollars left.
        Because of {problem}, {name}
        The {small} in the {room}
        There was not enough {food} for
        It took {number} days to
        {name} could not decide whether
        {name} and {his} {relative} had an argument about
        {name} had a simple plan. First, {he}
        {name} was late for the {event} because of {problem}.
    """,
    "how to": """
        {name} showed {his} {relative} how to grow {a:plant}.
        {name} wanted to build {a:adj} {thing}. First, {he}
        To cook {food} for {number} people,
        To clean the {room} on {a:weather} {weekday},
        To paint {a:adj} {thing},
        My {relative} knows how to repair {a:repair}. First,
        To travel from {town} to {town},
        To prepare for {a:event} in {month},
        To clean {a:thing}, first
        To repair {a:repair}, you
        To grow {a:plant} at home,
        The first step if you want to {skill} is to
        To get from the {place} to the {place},
        Put the {ingredient} in
        Take a piece of paper, {a:thing} and
        To build a simple {thing},
        When you move from {country} to {country},
        To draw {a:animal}, start with
        You can make a simple {gift} from
        To teach a child to {skill},
        To choose a good {thing},
        Before you paint the {room},
        To plan {a:event}, you
        If you find {a:small} in your {room},
        To learn {subject}, it helps to
        To store {ingredient}, keep them
        Keeping {a:pet} clean is
        To take care of {a:plant}, you
    """,
}
TEMPLATES = [(form, " ".join(line.split())) for form, lines in FORMS.items() for line in lines.strip().splitlines()]
_FIELD = re.compile(r"\{(!?)(?:([aAs]):)?(\w+)\}")
_ODD = re.compile(r"(?i)hour|honest|heir|X-ray|8|11|18|eleven|eight")
_NOT = re.compile(r"(?i)u[ns]i|use|euro|one|ukulele")


def article(word: str) -> str:
    """ "a" or "an"."""
    vowel = word[0].lower() in "aeiou" and not _NOT.match(word)
    return "an" if vowel or _ODD.match(word) else "a"


def plural(word: str) -> str:
    """A thing's plural."""
    if word.endswith(("knife", "shelf")):
        return word.replace("knife", "knives").replace("shelf", "shelves")
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def opening(seed: int, k: int, form: str) -> tuple[int, str]:
    """Opening k of a seed and form: its template's number in TEMPLATES, and its text."""
    # Seeded by a string: hashed with SHA-512, the same on every machine and version.
    draw = random.Random(f"{seed}:{k}")
    number = draw.choices(_NUMBERS[form], _WEIGHTS[form])[0]
    used, she = {}, None

    def fill(found: re.Match) -> str:
        nonlocal she
        large, a, field = found.groups()
        if field in ("he", "his", "him"):
            word = {"he": "she", "his": "her", "him": "her"}[field] if she else field
        else:
            if field == "name":
                gender = draw.random() < 0.5
                she = gender if she is None else she
                field = "woman" if gender else "man"
            seen = used.setdefault(field, set())
            word = draw.choice([word for word in LISTS[field] if word not in seen])
            seen.add(word)
        if a == "s":
            word = plural(word)
        elif a:
            article_ = article(word)
            word = f"{article_.capitalize() if a == 'A' else article_} {word}"
        return word[0].upper() + word[1:] if large else word

    text = _FIELD.sub(fill, TEMPLATES[number][1])
    # "A old" and the like, where the adjective is a list's and the article the template's.
    text = re.sub(r"\b([Aa]) (?=(\w+))", lambda m: m[1] + ("n " if article(m[2]) == "an" else " "), text)
    return number, text


_NUMBERS = {form: [i for i, (other, _) in enumerate(TEMPLATES) if other == form] for form in FORMS}


def combinations(number: int) -> int:
    """Texts that a template can make."""
    count = 1
    for _, _, field in _FIELD.findall(TEMPLATES[number][1]):
        count *= 168 if field == "name" else len(LISTS.get(field, "1"))
    return count


# A template that makes few texts is drawn less often, so that few openings are equal.
_WEIGHTS = {form: [min(combinations(number), 20000) ** 0.4 for number in numbers] for form, numbers in _NUMBERS.items()}

ABOUT = {
    "day": "an ordinary day",
    "memory": "a childhood memory",
    "how it works": "how everyday things work",
    "explanation": "why things are the way they are",
    "recipe": "cooking at home",
    "letter": "letters between friends",
    "news": "the news of a small town",
    "place": "places and the people who live there",
    "animal": "animals and how they live",
    "advice": "good advice for everyday life",
    "story": "people and the small things that happen to them",
    "person": "people in a small town",
    "hobby": "hobbies and sports",
    "work": "people at work",
    "travel": "traveling",
    "seasons": "the weather, the seasons and the garden",
    "history": "how people lived in the past",
    "object": "everyday objects",
    "school": "life at school",
    "opinion": "what people like and why",
    "problem": "everyday problems and how people solve them",
    "how to": "how to do simple things at home",
}
