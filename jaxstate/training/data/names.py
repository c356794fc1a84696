"""Names of things, made up.

Comes in: a random number generator. Goes out: names that no list could hold all of: most of them
are drawn letter by letter, so that a model must copy them. Does not know: what they are names of.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SYLLABLES = (
    "ar al an ba be bo ca ce co da de do el en er fa fi ga go ha hel in ka ki la le li lo ma me mi "
    "mo na ne ni no or pa pe po qui ra re ri ro sa se si so ta te ti to u va ve vi wa xe ya ze zo"
).split()
_WORDS = (
    "alpha amber anchor apex arrow atlas aurora basin beacon birch blue bolt breeze bridge bright "
    "brook canyon cedar chart cinder cliff cloud cobalt comet copper coral crane crest crown dawn "
    "delta drift dune eagle east echo ember falcon fern field flint forge fox frost garnet glacier "
    "glen gold granite green grove harbor hawk haze hill horizon indigo iron island ivory jade "
    "juniper keel kestrel lake lantern lark laurel ledge lime linden lotus lunar maple marble "
    "marsh meadow mesa mint mist moon moss north nova oak oasis ocean olive onyx opal orbit orchid "
    "otter pearl pebble pine plain plum polar pond prairie quartz quill rain raven reef ridge "
    "river robin rose ruby sage sand shore silver sky slate snow solar south spark spruce star "
    "stone storm stream summit sun swift teal thorn tide timber topaz trail tulip valley velvet "
    "violet vista wave west willow wind winter wolf wren zephyr zinc"
).split()
_NOUNS = (
    "apple apron axe badge bag ball balloon banner barrel basket battery bell belt bench blanket "
    "blender board boat boot bottle bowl bracket broom brush bucket bulb button cabinet cable cage "
    "cake calendar candle cap card carpet case chain chair chest clamp clock cloth coat coin comb "
    "compass cone cord couch cup curtain cushion dish doll door drawer dress drum easel engine fan "
    "faucet fence file flag flask flute fork frame freezer fridge funnel gear glass globe glove "
    "hat heater hinge hook hose iron jacket jar jug keyboard knife knob ladle lens lever lid lock "
    "magnet map mask mat mattress meter microphone mixer mop mouse mug nail napkin needle net "
    "notebook oar oven paddle paint pan paper parrot pen pencil phone picture pillow pipe pitcher "
    "plant plate plug pot purse puzzle rack radio rake razor record ribbon ring robot rod roller "
    "rope rug ruler saddle safe sail saw scale scarf scissors screen screw seat shell shirt shovel "
    "sieve sign sink skate sled sleeve soap socket sofa speaker spoon spring stamp stand statue "
    "stool stove strap suitcase sweater switch tablet tank tape tie tile tire toaster tool torch "
    "towel toy tray tripod trophy trumpet tube umbrella vacuum valve van vase vest wagon wallet "
    "watch wheel whistle wire"
).split()
_ROOMS = (
    "hall kitchen office lab store depot hangar corridor workshop library lobby vault balcony barn "
    "basement bathroom bedroom canteen chapel classroom clinic closet courtyard dock entrance "
    "factory gallery gym kiosk laundry lounge museum nursery pantry porch reception studio terrace "
    "tower tunnel veranda warehouse ward wing"
).split()
_ONSETS = (
    "",
    *(
        "b br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sk sl sm sn sp st "
        "str sw t th tr tw v w wh y z"
    ).split(),
)
_VOWELS = "a e i o u a e i o u ai ea ee ie oa oo ou ay ey".split()
_CODAS = (
    *("",) * 5,
    *(
        "b ck d f g ge k l ll m n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t tch th x ze le ne"
    ).split(),
)
_SUFFIXES = ("Corp", "Inc", "Ltd", "Group", "Energy", "Labs", "Bank", "Motors", "Systems", "Foods")
_CURRENCIES = "USD EUR GBP JPY CHF AUD CAD NZD SEK NOK BTC ETH SOL XAU".split()


def word(rng: random.Random) -> str:
    """A common word or one made up, in small letters."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(_WORDS)
    return made_up(rng) if draw < 0.75 else "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3)))


def made_up(rng: random.Random) -> str:
    """What might be a word, in small letters."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )


def noun(rng: random.Random) -> str:
    """A thing: a common one, or one that only this stream knows."""
    return rng.choice(_NOUNS) if rng.random() < 0.6 else word(rng)


def room(rng: random.Random) -> str:
    """Where things are."""
    return rng.choice(_ROOMS) if rng.random() < 0.6 else word(rng)


def company(rng: random.Random) -> str:
    """A company's name."""
    name = word(rng).capitalize()
    return f"{name} {rng.choice(_SUFFIXES)}" if rng.random() < 0.6 else name


def symbol(rng: random.Random) -> str:
    """What is traded: mostly a ticker of one to five letters."""
    draw = rng.random()
    if draw < 0.7:
        return "".join(rng.choices(_LETTERS, k=rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5))))
    if draw < 0.8:
        return rng.choice(("/", "", "-", "")).join(rng.sample(_CURRENCIES, 2))
    return company(rng) if draw < 0.92 else word(rng).upper()


def device(rng: random.Random, kind: str) -> str:
    """A sensor or machine: "boiler-2", "tank_north", "Sensor 7"."""
    tail = rng.choice(
        (str(rng.randint(1, 9)), str(rng.randint(10, 99)), rng.choice("abcdefgh"), word(rng))
    )
    if rng.random() < 0.3:
        return f"{kind.capitalize()} {tail.upper() if len(tail) == 1 else tail}"
    return f"{kind}{rng.choice('-_. ')}{tail}" if rng.random() < 0.9 else f"{kind}{tail}"


def person(rng: random.Random) -> str:
    """A first name."""
    if rng.random() < 0.3:
        return made_up(rng).capitalize()
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).capitalize()


def place(rng: random.Random) -> str:
    """A town."""
    end = rng.choice(("", "", "ville", "ton", "burg", "field", " Bay", " City"))
    return "".join(rng.choices(_SYLLABLES, k=2)).capitalize() + end


def distinct(make: Callable[[], str], count: int) -> list[str]:
    """So many different names.

    Args:
        make: called without arguments for each.
        count: how many.
    """
    names: dict[str, None] = {}
    while len(names) < count:
        names[make()] = None
    return list(names)
