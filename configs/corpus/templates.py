"""Templates of openings by form, and what each form is about.

A template's fields are lists of words.py. `{name}` is a person, whose pronouns are `{he}`, `{his}` and `{him}`; `{a:list}`
puts "a" or "an" before the word, `{A:list}` "A" or "An"; `{s:list}` is its plural; `{!list}` makes the first letter large. Most
openings stop within a sentence, so that the model chooses its verb and its turn.
"""

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
