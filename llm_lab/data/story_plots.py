"""The plots of the built-in stories, as text that story_world.Story reads.

"== name" begins a section, "~" a paragraph. "- " is something to say and "| " another way to say it; "? " is
said in some stories only. "@a|b" tells one of these sections, "@?a" tells it in some stories only.
"""

PLOTS = (
    "lost_thing",
    "out_of_reach",
    "sharing",
    "rainy_day",
    "small_animal",
    "being_brave",
    "making_a_thing",
    "a_present",
    "telling_the_truth",
    "a_race",
    "making_friends",
)

SECTIONS = """
== meet
- Once upon a time there was a {size} {kind} named {H}.
| Once there was {a_trait} {kind} named {H}.
| {H} was a {size} {kind} who lived {home}.
| {Home} lived a {size} {kind} named {H}.
| {H} was a {size} {kind}, and {he} was very {trait}.
| Long ago, {a_trait} {kind} called {H} lived {home}.
| This is the story of {H}, a {size} {kind}.

== likes
- {He} loved to {hobby}.
| {He} liked to {hobby} all day long.
| {He} had {a_color} scarf that {he} wore every day.
| {He} lived there with {E}.
| Everybody liked {him}.

== scene
- The sun was shining, and the birds were singing.
| A soft wind blew over the grass.
| White clouds sailed across the sky like ships.
| A butterfly danced in the air.
| Bees hummed around the flowers.
| It smelled of fresh bread.
| Far away, a dog barked.
| There was nobody else around.
| The grass was still wet and green.
| A snail sat on a stone and looked at them.
| On the way, they {game1}.
| They sang a song while they walked.
| {F} wore {a_color} hat.
| They took {a_treat} with them.

== friend
- {His} best friend was {a_fkind} named {F}.
| {H} had a good friend, {a_fkind} named {F}.
| {His} friend {F} was {a_ftrait} {fkind}.
| Next door lived {F}, {a_ftrait} {fkind}.
| {H} and {F_the} played together every day.

== go
~
- One {weather} {time}, {H} and {F} went {to}.
| One {time}, {H} went {to} with {F}.
| It was a {weather} {time}, so the two friends walked {to}.
| One {time}, {F} said, "Let us go {to}!" So they did.
| "It is such a {weather} {time}," said {H}. "Let us go {to}!" And off they went.

== end
- From that day on, they were even better friends.
| It was the best day of the whole year.
| And they never forgot that day.
| That night, {H} slept very well.
| The next day, they met again to play.
| {H} learned that a good friend makes everything easier.
| {H} went home with a big smile.
| And when the sun went down, they walked home together.
| They laughed all the way home.
| In the evening, {H} told {E} the whole story.
| Then it was time for bed, and the moon came out.
| {H} hummed a little song on the way home.
| It had been a good day.

== lost_thing
@meet
@?likes
- {He} had {a_thing}, and {he} took it everywhere.
| {His} favorite thing was {a_thing}.
| {E} had given {him} {a_thing}, and {he} loved it.
| {H} loved {his} {thing} more than anything.
@friend
@go
@?scene
- They played and ran and laughed. But then {H} stopped. The {toy} was gone!
| They played for a long time. Then {H} looked around. "Where is my {toy}?" {he} asked.
| When it was time to go home, {H} could not find the {thing}. "Oh no!" {he} cried.
- {H} was {bad}.
| {H} felt {bad}.
| A tear ran down {his} cheek.
| {H} sat down and was {bad}.
- "Do not worry," said {F}. "I will help you look."
| "We will find it together," said {F}.
| "Let us look for it," said {F}. "It can not be far."
~
- They looked {spot1}. It was not there. They looked {spot2}. It was not there.
| {H} looked {spot1}, but there was nothing. {F} looked {spot2}, but there was nothing.
| First they looked {spot1}. Then they looked {spot2}. The {toy} was not there.
- At last, {F} looked {spot3}. "Here it is!" {fhe} called.
| Then {H} looked {spot3}, and there was the {thing}!
| Then a small bird called to them. It was sitting {spot3}, right next to the {thing}!
- {H} held the {toy} tight. "Thank you, {F}," {he} said.
| {H} was {good} and gave {F} a big hug.
| "Thank you!" said {H}, and {he} was {good}.
@end

== out_of_reach
@meet
@?likes
@friend
@go
@?scene
- {H} threw the {thing} up, up, up. It got stuck {high}.
| The wind took the {thing} out of {his} hands and left it {high}.
| They played with the {thing}. But {F} threw it too far, and it got stuck {high}.
- "Oh no!" said {H}. "How can we get it down?"
| "It is too high," said {H}.
| {H} was {bad}.
~
- First {H} {try1}, but {reason1}.
| {H} {try1}, but {reason1}.
- Then {F} {try2}, but {reason2}.
| Now it was the turn of {F}. {Fhe} {try2}, but {reason2}.
- "I have an idea," said {F}. "Let us do it together." {H} stood on {fhis} back.
| "If we work together, we can do it," said {H}. {F} climbed on {his} back.
| Then they asked {E} for help, and {ehe} came with a long ladder.
| Then a tall giraffe came by. "May I help you?" it asked, and it stretched its long neck.
- Now they could reach it!
| And there it was!
| Down came the {thing}!
~
- "We did it!" they shouted. They were {good}.
| "Hooray!" said {H}. "Thank you for your help."
| {H} and {F} were {good}. They danced around the {toy}.
@end

== sharing
@meet
@?likes
@friend
@go
@?scene
- {H} had a big {treat} with {him}. It smelled so good.
| {E} had made a {treat} for {H}, and {he} took it along.
| On the way, {H} bought a sweet {treat}.
- "May I have some?" asked {F}.
| "I am so hungry," said {F}. "I have nothing to eat."
| {F} looked at the {treat}, and {fhis} tummy made a loud noise.
~
@refuse|give
- "Thank you!" said {F}. They sat down {where} and ate.
| They ate together, and every crumb was good.
| {F} smiled from ear to ear.
? The next day, {F} came with {an_other}. "This is for you," {fhe} said, "because you shared."
~
- {H} was {good}.
| It was {his} best {treat} ever.
| "Sharing is fun," said {H}.
@end

== refuse
- "No," said {H}. "It is mine!" {F} turned away and was {bad}.
| {H} hid the {treat} behind {his} back. "It is all for me," {he} said.
- But then the {treat} did not taste good anymore. {H} looked at {F} and felt bad.
| {H} took one bite. It was no fun to eat alone.
- "I am sorry," said {H}. "Here, half of it is for you."
| "I was not kind," said {H}. "Let us share."

== give
- "Of course," said {H}, and {he} broke the {treat} in two.
| {H} thought for a moment. Then {he} gave the bigger half to {F}.
| "What is mine is yours," said {H}. {He} cut the {treat} into two parts.

== rainy_day
@meet
@?likes
@friend
~
- One {time}, they wanted to go {to}, but it began to rain.
| "Let us go {to}," said {F}. But when they opened the door, it was raining hard.
| They had planned to go {to} all week. But then dark clouds came, and it rained and rained.
- {H} was {bad}.
| "Now our day is spoiled," said {H}.
| {H} looked out of the window and felt {bad}.
- "We can have fun inside," said {F}.
| "I know what we can do," said {F}.
| {E} smiled. "A wet day is a good day for new ideas," {ehe} said.
~
- So they {fun}.
| First they drank hot milk. Then they {fun}.
| {H} thought about it. Then they {fun}.
- {F} made {H} laugh so much that {he} fell off the chair.
| It was so much fun that they forgot the time.
| {E} came to see it and clapped {ehis} hands.
| They told {E} all about it, and {ehe} wanted to join in.
? They shared a {treat} and listened to the wind.
| {F} put on a silly hat and sang a song.
~
- When the sky was clear again, they did not even see it.
| In the evening a rainbow stood over the hill, and they waved at it.
| "I hope there is bad weather tomorrow too!" said {H}.
- {H} liked {indoors} best of all.
| They talked about {indoors} for many days.
@end

== small_animal
@meet
@?likes
~
- One {weather} {time}, {H} was {where} when {he} heard a tiny sound.
| One {time}, {H} was on the way {to}. Suddenly {he} heard somebody cry.
| {H} was playing with {his} {thing} {where}. Then {he} heard a soft voice.
- {A_small} sat {spot1}. It looked at {H} with big eyes.
| It was {a_small}, all alone {spot1}.
| There, {spot1}, {he} found {a_small}.
- "What is wrong?" asked {H}. "I have lost my mother," said the {animal}.
| "I am lost," said the {animal}. "I want to go home."
| "I hurt my leg," said the {animal}. "I can not go home."
| "I am so cold and so hungry," said the {animal}.
~
- "Do not be afraid," said {H}. "I will help you."
| {H} sat down beside it. "You are safe with me," {he} said.
| "You poor thing," said {H}.
- {He} gave it some water and a bit of {his} {treat}.
| {He} wrapped it in {his} warm scarf.
| {He} made a soft bed for it out of leaves and grass.
| {He} carried it home very carefully, and {E} gave it warm milk.
- Soon the {animal} felt better.
| The {animal} slept for a while, and then it was much better.
| After a while, the {animal} could smile again.
- Together they asked {F_the} for the way. {F} knew it well.
| Then {F_the} came by. "I know where it lives!" said {F}.
| They walked and walked, until they met {F_the}, who showed them the way.
~
- When the mother saw her little {animal}, she cried with joy.
| The mother of the {animal} came running. "There you are, my dear!" she said.
| At home, the whole family was waiting for the {animal}.
- "Thank you, {H}," said the {animal}. "You are so {trait}."
| The {animal} gave {H} a kiss on the nose.
| From then on, the {animal} came to visit {H} every day.
- {H} was {good}.
| It is good to be kind to those who are small.
| {H} went home and told {E} all about it.

== being_brave
@meet
- There was one thing that {H} did not like, and that was {fear}.
| {H} was afraid of {fear}.
| {H} could do many things, but {he} was afraid of {fear}.
@friend
~
- One {time}, {moment}.
| Then, one {weather} {time}, {moment}.
- {His} heart went bump, bump, bump.
| {H} began to shake.
| "I can not do it," {he} said.
- {F} took {his} hand. "I am here," {fhe} said.
| "I was afraid too, once," said {F}. "Come, we will do it together."
| "Close your eyes and count to three," said {F}.
| "You do not have to be big to be brave," said {E}.
~
- {H} took a deep breath. One, two, three!
| {H} held the {thing} tight and took one small step. Then {he} took another.
| Slowly, {H} opened {his} eyes.
- {truth}.
- "It is not so bad!" said {H}.
| {H} began to laugh. "Is that all?" {he} asked.
| "Look at me!" called {H}. "I did it!"
- {F} was happy for {him}.
| {E} was proud of {him}.
| {F} clapped and cheered.
~
- After that, {H} was not afraid of {fear} anymore.
| The next time, {H} was not afraid at all.
| And when {F} was afraid one day, {H} took {fhis} hand.
@end

== making_a_thing
@meet
@?likes
@friend
~
- "Let us make {make}," {F} said one {time}.
| One {time}, {H} wanted to make {make} for {E}.
| It was the birthday of {E}, and the two friends wanted to make {make}.
- They needed {parts}.
| They looked all over the house and found {parts}.
- {H} {step}. {F} helped.
| {H} and {F} {step}.
| First they {step}.
- But then they {trouble}!
| But in the middle of it, they {trouble}.
- "Oh dear!" said {F}.
| {H} was {bad}.
| "Now it is no good," said {H}.
~
- "Everyone makes mistakes," said {E}. "Try once more."
| "It is not so bad," said {F}. "We can mend it."
| "Let us not give up," said {H}.
- So they {mending}.
| They thought about it, and then they {mending}.
- {result}.
~
- "You two are wonderful," said {E}.
| {E} was {good}, and so were they.
| "We made it ourselves!" said {H}. {He} was {good}.
@end

== a_present
@meet
@?likes
@friend
~
- Soon it was the birthday of {F}. {H} wanted to give {fhim} something special.
| "Tomorrow is my birthday," said {F}. {H} had no present yet!
| {H} wanted to thank {F} for being such a good friend.
- {H} looked into {his} money box, but there was only one coin in it.
| {H} asked {E}, "What can I give to {F}?" "Give something that comes from your heart," said {E}.
| {H} thought and thought. What did {F} like best?
- All day long {he} worked in secret, and in the evening it was done. It was {gift}!
| {He} helped {E} in the house, and with the money {he} bought {gift}.
| {He} traded {his} {thing} for {gift}.
~
- The next {time}, {H} knocked at the door. "This is for you!" {he} said.
| {H} hid it {spot1}. "Close your eyes," {he} said to {F}, "and come with me."
| "Surprise!" shouted {H}, and {F} jumped.
- "{Gift}!" said {F}. "It is just what I wanted!"
| When {F} saw {gift}, {fhe} was {good}.
| {F} did not know what to say. Then {fhe} hugged {H} for a long time.
? Then {F} laughed. "I have something for you too," {fhe} said, and gave {him} {other_gift}.
| A week later, {F} gave {H} {other_gift}.
~
- They ate a {treat} together and sang.
| It was a wonderful day.
| To give is as nice as to get.
@end

== telling_the_truth
@meet
@?likes
- {He} lived with {E}.
| {E} often told {him} stories.
| {H} liked to visit {E}.
~
- One {weather} {time}, {H} played with {his} {toy} in the house. Crash! The {broken} fell down and broke.
| One {time}, {H} and {F} ran around the table. Crash! There lay the {broken} in a hundred pieces.
| One {time}, {H} jumped on the bed with {F}. They jumped so hard that the {broken} fell down and broke.
- {H} was {bad}. It belonged to {E}!
| "Oh no," said {H}. "What will {E} say?"
| {His} face turned red.
- "We could hide it," said {F}. But {H} shook {his} head.
| {H} thought about hiding the pieces. But that did not feel right.
| "Just say that the wind did it," said {F}. "No," said {H}. "That is not true."
~
- So {H} went to {E}. "I broke your {broken}," {he} said. "I am very sorry."
| When {E} came home, {H} told {ehim} everything.
| "{E}, I did something bad," said {H}. "I broke the {broken}."
- {E} was quiet for a while. Then {ehe} smiled. "Thank you for telling the truth," {ehe} said.
| "That was brave of you," said {E}. "Things can be mended."
| {E} was not angry at all. {Ehe} gave {H} a hug.
- Together they glued the pieces, one by one.
| {H} and {F} swept the floor and helped to clean up.
| {H} gave {E} all the coins from {his} money box to buy a new one.
~
- {H} was {good} again.
| It is always best to tell the truth.
| After that, {H} played outside.
@end

== a_race
@meet
@?likes
@friend
~
- One {weather} {time}, there was {race}. Everyone came to see it.
| "There is {race} today," said {F}. "Let us both join in!"
- "I am the fastest of all," said {H}. "I will win!"
| {H} wanted to win more than anything. The prize was {a_thing}.
| "I am too slow," said {F}. "I will never win."
- One, two, three, go! They {went} as fast as they could.
| The bell rang, and off they {went}.
~
- {H} was in front. But then {he} heard a cry. {F} had hurt {fhis} foot!
| Halfway, {F} stopped. "I can not go on," {fhe} said.
| They were close to the end when {F} fell down.
- {H} looked ahead, and then {he} looked back. {He} turned around to help {F}.
| "You are more important than a race," said {H}, and {he} went back.
| "Wait, I am coming!" called {H}.
- Slowly, side by side, they came in last.
| Arm in arm they crossed the line, long after all the others.
| Together they made it to the end. They were the very last.
~
- But everyone cheered for them. {E} gave {H} a prize for being a good friend.
| But nobody laughed. They all clapped, and {E} clapped the loudest.
| {F} gave {H} {a_thing}. "For me, you are the winner," {fhe} said.
- {H} was {good}.
| {H} did not mind at all.
| "Next time we will win," said {H}, and they laughed.
@end

== making_friends
@meet
- But {he} had no one to play with.
| {H} was often alone.
| {H} wished for a friend.
~
- One {weather} {time}, {H} went {to}. There {he} saw {a_fkind}.
| One {time}, {he} met {a_fkind} {where}.
| One {weather} {time}, {a_fkind} with {a_thing} came {to}.
- "Hello! I am {H}," said {H}. "Who are you?"
| {H} was shy at first. Then {he} said hello.
- "My name is {F}," said the {fkind}.
| The {fkind} smiled. "I am {F}," {fhe} said. "I am new here."
- "Do you want to play with me?" asked {H}.
| "Shall we play together?" asked {H}.
| "I do not know anyone," said {F}. "You know me now," said {H}.
~
- First they {game1}, and then they {game2}.
| They {game1}. Then {F} had an idea, and they {game2}.
| {F} showed {H} a new game. After that they {game1}.
- {F} was {a_ftrait} {fkind}, and {H} liked {fhim} very much.
| They found out that they both liked to {hobby}.
| {H} shared {his} {treat} with {F}.
? When {F} fell down, {H} helped {fhim} up.
| They laughed so much that their tummies hurt.
~
- "Will you come back tomorrow?" asked {F}. "Of course," said {H}.
| "I have a friend now," {H} told {E} that evening.
| When the sun went down, they did not want to go home.
- {H} was {good}.
| Now {H} was not alone anymore.
| That was how {H} and {F} became friends.

== numbers
@meet
@?likes
? {He} liked to count things.
| {H} was good with numbers.
| {H} was learning to count.
@friend
~
- One {time}, {H} found {n} {found}.
| {H} had {n}.
| One {weather} {time}, {E} gave {n} to {H}.
| One {time}, {H} went {to} with {n}.

== add
- {F} gave {H} {b} more.
| Then {H} found {b} more.
| {E} came and gave {H} {b} more.
| Then {F} came with {nb}, and they put them all together.
- {a} + {b} = {c}. Now {H} had {n}.
| "{a} + {b} = {c}," said {F}. So {H} had {n}.
| {H} counted. "{a} + {b} = {c}," {he} said.

== take
- {H} gave {b} of them to {F}.
| Then {H} lost {b} of them on the way.
| {F} asked for some, so {H} gave {fhim} {nb}.
- {a} - {b} = {c}. Now {H} had {n} left.
| {H} counted. "{a} - {b} = {c}," {he} said.

== count
~
- "How many {many} do you have now?" asked {E}. "I have {n}!" said {H}.
| They counted everything once more. It came to {n}.
| "I have {n}," said {H}, and {he} was {good}.
| {H} put them in a row and counted them again. {He} had {n}.
@end
"""
