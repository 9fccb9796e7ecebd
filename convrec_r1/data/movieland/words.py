"""The words of movieland: names of genres and themes, ways of saying them, and sentences with a gap ({})."""

GENRE_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "action": (("an action film", "action films"), ("an action movie", "action movies")),
    "adventure": (("an adventure film", "adventure films"), ("an adventure movie", "adventure movies")),
    "animation": (("an animated film", "animated films"), ("an animation", "animation films")),
    "comedy": (("a comedy", "comedies"), ("a funny comedy", "comedies")),
    "crime": (("a crime film", "crime films"), ("a crime movie", "crime movies")),
    "drama": (("a drama", "dramas"), ("a good drama", "dramas")),
    "family": (("a family film", "family films"), ("a movie for the whole family", "family movies")),
    "fantasy": (("a fantasy film", "fantasy films"), ("a fantasy movie", "fantasy movies")),
    "horror": (("a horror film", "horror films"), ("a horror movie", "horror")),
    "musical": (("a musical", "musicals"),),
    "mystery": (("a mystery", "mysteries"), ("a mystery film", "mysteries")),
    "romance": (("a romance", "romances"), ("a romantic film", "romantic films")),
    "science fiction": (("a science fiction film", "science fiction"), ("a sci-fi movie", "sci-fi movies")),
    "thriller": (("a thriller", "thrillers"), ("a tense thriller", "thrillers")),
    "war": (("a war film", "war films"), ("a war movie", "war movies")),
    "western": (("a western", "westerns"),),
}
"""Genre -> (singular, plural), in one or two wordings."""
GENRES = tuple(GENRE_WORDS)

THEME_WORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "aliens": (("about aliens", "with aliens"), "stories with aliens"),
    "animals": (("about animals", "with animals"), "stories with animals"),
    "big city": (("set in a big city", "about life in the big city"), "big city stories"),
    "class divide": (("about rich and poor", "about the class divide"), "stories about the class divide"),
    "coming of age": (("about coming of age", "about growing up"), "coming of age stories"),
    "con artists": (("about con artists", "with con artists"), "con artists"),
    "conspiracy": (("about a conspiracy", "with a conspiracy"), "conspiracy plots"),
    "courtroom": (("set in a courtroom", "with courtroom scenes"), "courtroom scenes"),
    "detectives": (("about detectives", "with a detective"), "detective stories"),
    "dystopia": (("set in a dystopia", "about a dystopia"), "dystopias"),
    "family ties": (("about family ties", "about a family"), "family stories"),
    "friendship": (("about friendship", "about friends"), "stories of friendship"),
    "gangsters": (("about gangsters", "with gangsters"), "gangster stories"),
    "ghosts": (("about ghosts", "with ghosts"), "ghost stories"),
    "grief": (("about grief", "that deals with grief"), "stories about grief"),
    "heist": (("about a heist", "with a heist"), "heist plots"),
    "hitmen": (("about hitmen", "with a hitman"), "stories of hitmen"),
    "journalism": (("about journalism", "about journalists"), "stories about journalism"),
    "loneliness": (("about loneliness", "about lonely people"), "stories of loneliness"),
    "magic": (("with magic", "about magic"), "stories with magic"),
    "marriage": (("about marriage", "about a marriage"), "stories about marriage"),
    "memory": (("about memory", "about lost memory"), "stories that play with memory"),
    "monsters": (("with monsters", "about monsters"), "monsters"),
    "music": (("about music", "about musicians"), "stories about music"),
    "obsession": (("about obsession", "about an obsession"), "stories of obsession"),
    "politics": (("about politics", "about politicians"), "stories about politics"),
    "prison": (("set in a prison", "about prison"), "prison stories"),
    "revenge": (("about revenge", "with a revenge plot"), "revenge stories"),
    "road trip": (("about a road trip", "with a road trip"), "road trips"),
    "robots": (("about robots", "with robots"), "robots"),
    "school": (("set in a school", "about school"), "school stories"),
    "serial killer": (("about a serial killer", "with a serial killer"), "serial killer stories"),
    "show business": (("about show business", "set in show business"), "stories about show business"),
    "small town": (("set in a small town", "about a small town"), "small town stories"),
    "space": (("set in space", "about space"), "stories set in space"),
    "spies": (("about spies", "with spies"), "spy stories"),
    "sports": (("about sports", "with sports"), "stories about sports"),
    "superheroes": (("about superheroes", "with superheroes"), "superheroes"),
    "survival": (("about survival", "about people who must survive"), "survival stories"),
    "the sea": (("set at sea", "about the sea"), "stories of the sea"),
    "time travel": (("about time travel", "with time travel"), "time travel stories"),
    "treasure hunt": (("about a treasure hunt", "with a treasure hunt"), "treasure hunts"),
    "true story": (("based on a true story", "that is a true story"), "true stories"),
    "twist ending": (("with a twist ending", "that ends on a twist"), "twist endings"),
    "underdogs": (("about underdogs", "with an underdog"), "underdog stories"),
    "undercover": (("about someone undercover", "about going undercover"), "undercover stories"),
    "vampires": (("about vampires", "with vampires"), "vampires"),
}
"""Theme -> (wordings after "a film", plural after "I like")."""
THEMES = tuple(THEME_WORDS)

DECADE_WORDS = {
    1930: "thirties",
    1940: "forties",
    1950: "fifties",
    1960: "sixties",
    1970: "seventies",
    1980: "eighties",
    1990: "nineties",
}

OPENINGS = (
    "Hi!",
    "Hello!",
    "Hey,",
    "Hi there,",
    "Movie night again.",
    "Good evening.",
    "A quick question.",
    "",
    "",
    "",
)
LIKED_ONE = (
    "I loved {}.",
    "One of my favorites is {}.",
    "I just saw {} and it was great.",
    "I can watch {} again and again.",
    "I am a big fan of {}.",
    "Last week I watched {} and enjoyed it a lot.",
    "{} is exactly my kind of film.",
    "I still think about {}.",
    "Nothing beats {} for me.",
)
LIKED_MANY = (
    "I loved {}.",
    "My favorites are {}.",
    "I just saw {} and they were great.",
    "I can watch {} again and again.",
    "I am a big fan of {}.",
    "Films I keep going back to: {}.",
    "{} are exactly my kind of films.",
    "I still think about {}.",
    "I have already seen {} and liked them a lot.",
)
ASK = (
    "Can you recommend {}?",
    "I am looking for {}.",
    "What should I watch if I want {}?",
    "I am in the mood for {}.",
    "Any suggestions for {}?",
    "Tonight I want {}.",
    "Help me find {}.",
    "Do you know {}?",
    "I could use {}.",
    "What I need is {}.",
)
ANSWER = (
    "I want {}.",
    "Maybe {}.",
    "Let's say {}.",
    "Ideally {}.",
    "I feel like {}.",
    "Best would be {}.",
    "I would like {}.",
)
ASK_ANYTHING = (
    "What should I watch next?",
    "Can you recommend something?",
    "I need my next film.",
    "Any suggestions?",
    "What else would I like?",
    "Help me pick a film for tonight.",
)
QUESTIONS = (
    "Sure! What are you in the mood for?",
    "Nice taste. Any genre or topic you prefer?",
    "Good choice. What should it be about?",
    "Happy to help. What kind of film?",
    "Tell me more: what do you like in a film?",
    "Of course. Any wishes?",
)
THEME_EXTRA = ("I like {}.", "I never get tired of {}.", "I have a weakness for {}.", "Also, I enjoy {}.")
GENRE_EXTRA = ("I like {} too.", "{} are fine too.", "I also enjoy {}.")
DIRECTOR_EXTRA = (
    "I admire {}.",
    "{} is my favorite director.",
    "I like everything {} has made.",
    "Films by {} usually work for me.",
)
DECADE_EXTRA = ("Preferably {}.", "Ideally {}.", "Best if it is {}.")
DISLIKE = ("No {}, please.", "I don't like {}.", "Please skip {}.", "Anything but {}.", "I can't stand {}.")
CLOSINGS = ("Thanks!", "Any ideas?", "Thank you.")
