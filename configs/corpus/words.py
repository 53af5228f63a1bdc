"""The word lists that templates draw from, by name."""

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
