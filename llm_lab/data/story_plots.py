"""The plots of the built-in stories: each one tells itself into a Story."""

from __future__ import annotations

from llm_lab.data import story_words as words
from llm_lab.data.story_world import Story, article, total


def _meet(s: Story) -> None:
    s.say(
        "once upon a time there was a {size} {kind} named {H}.",
        "once there was {a_trait} {kind} named {H}.",
        "{H} was a {size} {kind} who lived {home}.",
        "{home} lived a {size} {kind} named {H}.",
        "{H} was a {size} {kind}, and {he} was very {trait}.",
        "long ago, {a_trait} {kind} called {H} lived {home}.",
        "this is the story of {H}, a {size} {kind}.",
    )


def _friend(s: Story) -> None:
    s.say(
        "{His} best friend was a {fkind} named {F}.",
        "{H} had a good friend, a {fkind} named {F}.",
        "{His} friend {F} was {a_ftrait} {fkind}.",
        "next door lived {F}, {a_ftrait} {fkind}.",
        "{H} and {F} the {fkind} played together every day.",
    )


def _go(s: Story) -> None:
    s.turn()
    s.say(
        "one {weather} {time}, {H} and {F} went {to}.",
        "one {time}, {H} went {to} with {F}.",
        "it was a {weather} {time}, so the two friends walked {to}.",
        'one {time}, {F} said, "Let us go {to}!" So they did.',
        '"It is such a {weather} {time}," said {H}. "Let us go {to}!" And off they went.',
    )


def _end(s: Story) -> None:
    s.say(*words.MORALS)


def lost_thing(s: Story) -> None:
    _meet(s)
    s.say(
        "{He} had {a_thing}, and {he} took it everywhere.",
        "{His} favorite thing was {a_thing}.",
        "{E} had given {him} {a_thing}, and {he} loved it.",
        "{H} loved {his} {thing} more than anything.",
    )
    _friend(s)
    _go(s)
    s.say(
        "they played and ran and laughed. But then {H} stopped. The {toy} was gone!",
        'they played for a long time. Then {H} looked around. "Where is my {toy}?" {he} asked.',
        'when it was time to go home, {H} could not find the {thing}. "Oh no!" {he} cried.',
    )
    s.say("{H} was {bad}.", "{H} felt {bad}.", "a tear ran down {his} cheek.", "{H} sat down and was {bad}.")
    s.say(
        '"Do not worry," said {F}. "I will help you look."',
        '"We will find it together," said {F}.',
        '"Let us look for it," said {F}. "It can not be far."',
    )
    first, second, last = s.draw.several(s.spots, 3)
    s.turn()
    s.say(
        "they looked {first}. It was not there. They looked {second}. It was not there.",
        "{H} looked {first}, but there was nothing. {F} looked {second}, but there was nothing.",
        "first they looked {first}. Then they looked {second}. The {toy} was not there.",
        first=first,
        second=second,
    )
    s.say(
        'at last, {F} looked {last}. "Here it is!" {fhe} called.',
        "then {H} looked {last}, and there was the {thing}!",
        "then a small bird called to them. It was sitting {last}, right next to the {thing}!",
        last=last,
    )
    s.say(
        '{H} held the {toy} tight. "Thank you, {F}," {he} said.',
        "{H} was {good} and gave {F} a big hug.",
        '"Thank you!" said {H}, and {he} was {good}.',
    )
    _end(s)


def out_of_reach(s: Story) -> None:
    _meet(s)
    _friend(s)
    _go(s)
    high = s.draw.pick(words.HIGH_PLACES)
    s.say(
        "{H} threw the {thing} up, up, up. It got stuck {high}.",
        "the wind took the {thing} out of {his} hands and left it {high}.",
        "they played with the {thing}. But {F} threw it too far, and it got stuck {high}.",
        high=high,
    )
    s.say('"Oh no!" said {H}. "How can we get it down?"', '"It is too high," said {H}.', "{H} was {bad}.")
    s.turn()
    tries = s.draw.several(words.TRIES, 2)
    s.say(
        "first {H} {try_}, but {reason}.", "{H} {try_}, but {reason}.", try_=tries[0][0], reason=tries[0][1]
    )
    s.say(
        "then {F} {try_}, but {reason}.",
        "{F} {try_} too, but {reason}.",
        try_=tries[1][0],
        reason=tries[1][1],
    )
    s.say(
        '"I have an idea," said {F}. "Let us do it together." {H} stood on {fhis} back.',
        '"If we work together, we can do it," said {H}. {F} climbed on {his} back.',
        "then they asked {E} for help, and {ehe} came with a long ladder.",
        'then a tall giraffe came by. "May I help you?" it asked, and it stretched its long neck.',
    )
    s.say("now they could reach it!", "up they went, and there it was!", "down came the {thing}!")
    s.turn()
    s.say(
        '"We did it!" they shouted. They were {good}.',
        '"Hooray!" said {H}. "Thank you for your help."',
        "{H} and {F} were {good}. They danced around the {toy}.",
    )
    _end(s)


def sharing(s: Story) -> None:
    _meet(s)
    _friend(s)
    _go(s)
    s.say(
        "{H} had a big {treat} with {him}. It smelled so good.",
        "{E} had made a {treat} for {H}, and {he} took it along.",
        "on the way, {H} bought a sweet {treat}.",
    )
    s.say(
        '"May I have some?" asked {F}.',
        '"I am so hungry," said {F}. "I have nothing to eat."',
        "{F} looked at the {treat}, and {fhis} tummy made a loud noise.",
    )
    s.turn()
    if s.draw.chance(0.5):
        s.say(
            '"No," said {H}. "It is mine!" {F} turned away and was {bad}.',
            '{H} hid the {treat} behind {his} back. "It is all for me," {he} said.',
        )
        s.say(
            "but then the {treat} did not taste good anymore. {H} looked at {F} and felt bad.",
            "{H} took one bite. It was no fun to eat alone.",
        )
        s.say(
            '"I am sorry," said {H}. "Here, half of it is for you."',
            '"I was not kind," said {H}. "Let us share."',
        )
    else:
        s.say(
            '"Of course," said {H}, and {he} broke the {treat} in two.',
            "{H} thought for a moment. Then {he} gave the bigger half to {F}.",
            '"What is mine is yours," said {H}. {He} cut the {treat} into two parts.',
        )
    s.say(
        '"Thank you!" said {F}. They sat down {where} and ate.',
        "they ate together, and every crumb was good.",
        "{F} smiled from ear to ear.",
    )
    s.maybe(
        0.6, 'the next day, {F} came with {an_other}. "This is for you," {fhe} said, "because you shared."'
    )
    s.turn()
    s.say("{H} was {good}.", "it was {his} best {treat} ever.", '"Sharing is fun," said {H}.')
    _end(s)


def rainy_day(s: Story) -> None:
    _meet(s)
    _friend(s)
    s.turn()
    s.say(
        "one {time}, they wanted to go {to}, but it began to rain.",
        '"Let us go {to}," said {F}. But when they opened the door, it was raining hard.',
        "they had planned to go {to} all week. But then dark clouds came, and the snow fell and fell.",
    )
    s.say(
        "{H} was {bad}.",
        '"Now our day is spoiled," said {H}.',
        "{H} looked out of the window and felt {bad}.",
    )
    s.say(
        '"We can have fun inside," said {F}.',
        '"I know what we can do," said {F}.',
        '{E} smiled. "A wet day is a good day for new ideas," {ehe} said.',
    )
    fun, what = s.draw.pick(words.INDOOR_FUN)
    s.turn()
    s.say(
        "so they {fun}.",
        "first they drank hot milk. Then they {fun}.",
        "{H} thought about it. Then they {fun}.",
        fun=fun,
    )
    s.say(
        "{F} made {H} laugh so much that {he} fell off the chair.",
        "it was so much fun that they forgot the time.",
        "{E} came to see it and clapped {ehis} hands.",
        "they told {E} all about it, and {ehe} wanted to join in.",
    )
    s.maybe(
        0.6, "they ate a warm {treat} and listened to the wind.", "{F} put on a silly hat and sang a song."
    )
    s.turn()
    s.say(
        "when the sky was clear again, they did not even see it.",
        "in the evening a rainbow stood over the hill, and they waved at it.",
        '"I hope there is bad weather tomorrow too!" said {H}.',
    )
    s.say("{H} liked {what} best of all.", "they talked about {what} for many days.", what=what)
    _end(s)


def small_animal(s: Story) -> None:
    _meet(s)
    s.turn()
    animal = s.draw.pick(words.SMALL_ANIMALS)
    s.say(
        "one {weather} {time}, {H} was {where} when {he} heard a tiny sound.",
        "one {time}, {H} was on the way {to}. Suddenly {he} heard somebody cry.",
        "{H} was playing with {his} {thing} {where}. Then {he} heard a soft voice.",
    )
    (spot,) = s.draw.several(s.spots, 1)
    s.say(
        "{a_small} sat {spot}. It was shaking.",
        "it was {a_small}, all alone {spot}.",
        "{spot}, {he} found {a_small}.",
        a_small=article(f"{s.draw.pick(('little', 'small', 'tiny'))} {animal}"),
        spot=spot,
    )
    s.say(
        '"What is wrong?" asked {H}. "I have lost my mother," said the {animal}.',
        '"I am lost," said the {animal}. "I want to go home."',
        '"I hurt my leg," said the {animal}. "I can not go home."',
        '"I am so cold and so hungry," said the {animal}.',
        animal=animal,
    )
    s.turn()
    s.say(
        '"Do not be afraid," said {H}. "I will help you."',
        '{H} sat down beside it. "You are safe with me," {he} said.',
        '"You poor thing," said {H}.',
    )
    s.say(
        "{He} gave it some water and a bit of {his} {treat}.",
        "{He} wrapped it in {his} warm scarf.",
        "{He} made a soft bed for it out of leaves and grass.",
        "{He} carried it home very carefully, and {E} gave it warm milk.",
    )
    s.say(
        "soon the {animal} felt better.",
        "the {animal} slept for a while, and then it was much better.",
        "the {animal} stopped shaking.",
        animal=animal,
    )
    s.say(
        "together they asked {F} the {fkind} for the way. {F} knew it well.",
        'then {F} the {fkind} came by. "I know where it lives!" said {F}.',
        "they walked and walked, until they met {F} the {fkind}, who showed them the way.",
    )
    s.turn()
    s.say(
        "when the mother saw her little {animal}, she cried with joy.",
        'the mother of the {animal} came running. "There you are, my dear!" she said.',
        "at home, the whole family was waiting for the {animal}.",
        animal=animal,
    )
    s.say(
        '"Thank you, {H}," said the {animal}. "You are so {trait}."',
        "the {animal} gave {H} a kiss on the nose.",
        "from then on, the {animal} came to visit {H} every day.",
        animal=animal,
    )
    s.say(
        "{H} was {good}.",
        "it is good to be kind to those who are small.",
        "{H} went home and told {E} all about it.",
    )


def being_brave(s: Story) -> None:
    _meet(s)
    fear, moment, truth = s.draw.pick(words.FEARS)
    s.say(
        "there was one thing that {H} did not like, and that was {fear}.",
        "but {H} was afraid of {fear}.",
        "{H} could do many things, but {he} was afraid of {fear}.",
        fear=fear,
    )
    _friend(s)
    s.turn()
    s.say(f"one {{time}}, {moment}.", f"then, one {{weather}} {{time}}, {moment}.")
    s.say("{His} heart went bump, bump, bump.", "{H} began to shake.", '"I can not do it," {he} said.')
    s.say(
        '{F} took {his} hand. "I am here," {fhe} said.',
        '"I was afraid too, once," said {F}. "Come, we will do it together."',
        '"Close your eyes and count to three," said {F}.',
        '"You do not have to be big to be brave," said {E}.',
    )
    s.turn()
    s.say(
        "{H} took a deep breath. One, two, three!",
        "{H} held the {thing} tight and took one small step. Then {he} took another.",
        "slowly, {H} opened {his} eyes.",
    )
    s.say(f"{truth}.")
    s.say(
        '"It is not so bad!" said {H}.',
        '{H} began to laugh. "Is that all?" {he} asked.',
        '"Look at me!" called {H}. "I did it!"',
    )
    s.say("{F} was {good} for {him}.", "{E} was proud of {him}.", "{F} clapped and cheered.")
    s.turn()
    s.say(
        "now {H} is not afraid of {fear} anymore.",
        "the next time, {H} was not afraid at all.",
        "and when {F} was afraid one day, {H} took {fhis} hand.",
        fear=fear,
    )
    _end(s)


def making_a_thing(s: Story) -> None:
    _meet(s)
    _friend(s)
    what, parts, step, trouble, mending, result = s.draw.pick(words.PROJECTS)
    s.turn()
    s.say(
        '"Let us make {what}," {F} said one {weather} {time}.',
        "one {time}, {H} wanted to make {what} for {E}.",
        "it was the birthday of {E}, and the two friends wanted to make {what}.",
        what=what,
    )
    s.say("they needed {parts}.", "they looked all over the house and found {parts}.", parts=parts)
    s.say("{H} {step}. {F} helped.", "{H} and {F} {step}.", "first they {step}.", step=step)
    s.say("but then they {trouble}!", "but in the middle of it, they {trouble}.", trouble=trouble)
    s.say('"Oh dear!" said {F}.', "{H} was {bad}.", '"Now it is no good," said {H}.')
    s.turn()
    s.say(
        '"Everyone makes mistakes," said {E}. "Try once more."',
        '"It is not so bad," said {F}. "We can mend it."',
        '"Let us not give up," said {H}.',
    )
    s.say("so they {mending}.", "they thought about it, and then they {mending}.", mending=mending)
    s.say(f"{result}.")
    s.turn()
    s.say(
        '"You two are wonderful," said {E}.',
        "{E} was {good}, and so were they.",
        '"We made it ourselves!" said {H}. {He} was {good}.',
    )
    _end(s)


def a_present(s: Story) -> None:
    _meet(s)
    _friend(s)
    s.turn()
    gift, other_gift = s.draw.several(words.GIFTS, 2)
    s.say(
        "soon it was the birthday of {F}. {H} wanted to give {fhim} something special.",
        '"Tomorrow is my birthday," said {F}. {H} had no present yet!',
        "{H} wanted to thank {F} for being such a good friend.",
    )
    s.say(
        "{H} looked into {his} money box, but there was only one coin in it.",
        '{H} asked {E}, "What can I give to {F}?" "Give something that comes from your heart," said {E}.',
        "{H} thought and thought. What did {F} like best?",
    )
    s.say(
        "all day long {he} worked in secret, and in the evening it was done. It was {gift}!",
        "{He} helped {E} in the house, and with the money {he} bought {gift}.",
        "{He} traded {his} {thing} for {gift}.",
        gift=gift,
    )
    s.turn()
    s.say(
        'the next {time}, {H} knocked at the door. "This is for you!" {he} said.',
        '{H} hid it {spot}. "Close your eyes," {he} said to {F}, "and come with me."',
        '"Surprise!" shouted {H}, and {F} jumped.',
        spot=s.draw.pick(s.spots),
    )
    s.say(
        '"{gift_cap}!" said {F}. "It is just what I wanted!"',
        "when {F} saw {gift}, {fhe} was {good}.",
        "{F} did not know what to say. Then {fhe} hugged {H} for a long time.",
        gift=gift,
        gift_cap=gift[0].upper() + gift[1:],
    )
    s.maybe(
        0.6,
        'then {F} laughed. "I have something for you too," {fhe} said, and gave {him} {other_gift}.',
        "a week later, {F} gave {H} {other_gift}.",
        other_gift=other_gift,
    )
    s.turn()
    s.say("they ate a {treat} together and sang.", "it was a wonderful day.", "to give is as nice as to get.")
    _end(s)


def telling_the_truth(s: Story) -> None:
    _meet(s)
    s.say("{He} lived with {E}.", "{E} often told {him} stories.", "{H} liked to visit {E}.")
    thing = s.draw.pick(words.BREAKABLES)
    s.turn()
    s.say(
        "one {weather} {time}, {H} played with {his} {toy} in the house. Crash! The {broken} fell down and broke.",
        "one {time}, {H} and {F} ran around the table. Crash! There lay the {broken}, in a hundred pieces.",
        "one {time}, {H} jumped on the bed with {F}. They jumped so hard that the {broken} fell down and broke.",
        broken=thing,
    )
    s.say(
        "{H} was {bad}. It belonged to {E}!",
        '"Oh no," said {H}. "What will {E} say?"',
        "{His} face turned red.",
    )
    s.say(
        '"We could hide it," said {F}. But {H} shook {his} head.',
        "{H} thought about hiding the pieces. But that did not feel right.",
        '"Just say that the wind did it," said {F}. "No," said {H}. "That is not true."',
    )
    s.turn()
    s.say(
        'so {H} went to {E}. "I broke your {broken}," {he} said. "I am very sorry."',
        "when {E} came home, {H} told {ehim} everything.",
        '"{E}, I did something bad," said {H}. "I broke the {broken}."',
        broken=thing,
    )
    s.say(
        '{E} was quiet for a while. Then {ehe} smiled. "Thank you for telling the truth," {ehe} said.',
        '"That was brave of you," said {E}. "Things can be mended."',
        "{E} was not angry at all. {Ehe} gave {H} a hug.",
    )
    s.say(
        "together they glued the pieces, one by one.",
        "{H} and {F} swept the floor and helped to clean up.",
        "{H} gave {E} all the coins from {his} money box to buy a new one.",
    )
    s.turn()
    s.say("{H} was {good} again.", "it is always best to tell the truth.", "after that, {H} played outside.")
    _end(s)


def a_race(s: Story) -> None:
    _meet(s)
    _friend(s)
    race, went = s.draw.pick(words.RACES)
    s.turn()
    s.say(
        "one {weather} {time}, there was {race} {where}. Everyone came to see it.",
        '"There is {race} today," said {F}. "Let us both join in!"',
        race=race,
    )
    s.say(
        '"I am the fastest of all," said {H}. "I will win!"',
        "{H} wanted to win more than anything. The prize was {a_thing}.",
        '"I am too slow," said {F}. "I will never win."',
    )
    s.say(
        "one, two, three, go! They {went} as fast as they could.",
        "the bell rang, and off they {went}.",
        went=went,
    )
    s.turn()
    s.say(
        "{H} was in front. But then {he} heard a cry. {F} had hurt {fhis} foot!",
        'halfway, {F} stopped. "I can not go on," {fhe} said.',
        "they were close to the end when {F} got stuck in the mud.",
    )
    s.say(
        "{H} looked ahead, and then {he} looked back. {He} turned around to help {F}.",
        '"You are more important than a race," said {H}, and {he} went back.',
        '"Wait, I am coming!" called {H}.',
    )
    s.say(
        "slowly, side by side, they came in last.",
        "arm in arm they crossed the line, long after all the others.",
        "together they made it to the end. They were the very last.",
    )
    s.turn()
    s.say(
        "but everyone cheered for them. {E} gave {H} a prize for being a good friend.",
        "but nobody laughed. They all clapped, and {E} clapped the loudest.",
        '{F} gave {H} {a_thing}. "For me, you are the winner," {fhe} said.',
    )
    s.say(
        "{H} was {good}.", "{H} did not mind at all.", '"Next time we will win," said {H}, and they laughed.'
    )
    _end(s)


def making_friends(s: Story) -> None:
    _meet(s)
    s.say("but {he} had no one to play with.", "{H} was often alone.", "{H} wished for a friend.")
    _go_alone = (
        "one {weather} {time}, {H} went {to}. There {he} saw a {fkind} {he} did not know.",
        "one {time}, {he} met a {fkind} {where}.",
        "one {weather} {time}, a {fkind} with {a_thing} came {to}.",
    )
    s.turn()
    s.say(*_go_alone)
    s.say('"Hello! I am {H}," said {H}. "Who are you?"', "{H} was shy at first. Then {he} said hello.")
    s.say(
        '"My name is {F}," said the {fkind}.', 'the {fkind} smiled. "I am {F}," {fhe} said. "I am new here."'
    )
    s.say(
        '"Do you want to play with me?" asked {H}.',
        '"May I play with your {toy}?" asked {H}.'
        if "came" in s.paragraphs[-1][0]
        else '"Shall we play?" asked {H}.',
        '"I do not know anyone," said {F}. "You know me now," said {H}.',
    )
    s.turn()
    first, second = s.draw.several(words.GAMES, 2)
    s.say(
        "first they {first}, and then they {second}.",
        "they {first}. Then {F} had an idea, and they {second}.",
        "{F} showed {H} a new game. After that they {second}.",
        first=first,
        second=second,
    )
    s.say(
        "{F} was {a_ftrait} {fkind}, and {H} liked {fhim} very much.",
        "they found out that they both liked {treat}s and stories.",
        "{H} shared {his} {treat} with {F}.",
    )
    s.maybe(0.5, "when {F} fell down, {H} helped {fhim} up.", "they laughed so much that their tummies hurt.")
    s.turn()
    s.say(
        '"Will you come back tomorrow?" asked {F}. "Of course," said {H}.',
        '"I have a friend now," {H} told {E} that evening.',
        "when the sun went down, they did not want to go home.",
    )
    s.say("{H} was {good}.", "now {H} was not alone anymore.", "that was how {H} and {F} became friends.")


def count_and_add(s: Story) -> None:
    """Two to four numbers are put together, or some are given away; every sum is written out and right."""
    one, many, found = s.draw.pick(words.COUNTABLES)
    extra = {"many": many, "one": one, "found": found}
    _meet(s)
    s.maybe(0.6, "{He} liked to count things.", "{H} was good with numbers.", "{H} was learning to count.")
    _friend(s)
    s.turn()
    have = s.draw.number(1, 12)
    s.say(
        "one {time}, {H} found {n} {found}.",
        "{H} had {n}.",
        "one {weather} {time}, {E} gave {n} to {H}.",
        n=total(have, one, many),
        **extra,
    )
    for _ in range(s.draw.pick((1, 1, 1, 2, 2, 3))):
        if have > 3 and s.draw.chance(0.3):
            have = _take(s, have, one, many)
        else:
            have = _add(s, have, one, many)
    s.turn()
    s.say(
        '"How many {many} are there now?" asked {E}. "{n}!" said {H}.',
        "they counted them all once more. There were {n}.",
        '"I have {n}," said {H}, and {he} was {good}.',
        n=total(have, one, many),
        **extra,
    ) if have > 1 else s.say('"One {one} is all I need," said {H}.', **extra)
    _end(s)


def _add(s: Story, have: int, one: str, many: str) -> int:
    more = s.draw.number(1, 12)
    s.say(
        "{F} gave {him} {more} more.",
        "then {he} found {more} more.",
        "{E} came and gave {him} {more} more.",
        "then {F} came with {n}, and they put them all together.",
        more=more,
        n=total(more, one, many),
    )
    s.say(
        "{a} + {b} = {c}. Now {H} had {n}.",
        '"{a} + {b} = {c}," said {F}. So {H} had {n}.',
        '{H} counted. "{a} + {b} = {c}," {he} said.',
        a=have,
        b=more,
        c=have + more,
        n=total(have + more, one, many),
    )
    return have + more


def _take(s: Story, have: int, one: str, many: str) -> int:
    less = s.draw.number(1, have - 1)
    s.say(
        "{H} gave {less} of them to {F}.",
        "then {he} lost {less} of them on the way.",
        "{F} asked for some, so {H} gave {fhim} {n}.",
        less=less,
        n=total(less, one, many),
    )
    s.say(
        "{a} - {b} = {c}. Now {H} had {n} left.",
        '"{a} - {b} = {c}," said {H}.',
        a=have,
        b=less,
        c=have - less,
        n=total(have - less, one, many),
    )
    return have - less


PLOTS = (
    lost_thing,
    out_of_reach,
    sharing,
    rainy_day,
    small_animal,
    being_brave,
    making_a_thing,
    a_present,
    telling_the_truth,
    a_race,
    making_friends,
)
