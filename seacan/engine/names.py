"""Names and ids of containers: dockerd's rules, with words of our own."""

from __future__ import annotations

import random
import re
import secrets

from seacan.errors import InvalidParameter

ALLOWED = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
_NAME = re.compile(rf"/?{ALLOWED}+")

_ADJECTIVE_TEXT = """
able amber ample aqua arctic azure balmy bold brave breezy bright brisk briny calm candid cheerful clear clever coastal
cool coral cosy crisp curious daring deep deft drifting eager early easy fair fearless fleet floating fluent foamy fond
frank free fresh gentle glad gleaming glossy golden grand hardy hearty honest humble jolly keen kind lively loyal lucid
lucky lunar mellow merry mighty misty modest nautical neat nimble noble northern open patient peaceful placid playful
polar polite proud quick quiet radiant rapid ready robust rolling rugged salty sandy serene sharp shining silent silver
sleek smooth snug sober solid southern spry stable starry steady still stoic sturdy sunny sure swift tidal tidy tranquil
trim true trusty upbeat vast vivid warm wavy western wild windy wise witty zesty
"""

_NOUN_TEXT = """
albatross anchor anchovy anemone angelfish auk barge barnacle barracuda bay beacon beluga bollard bosun bream brig buoy
cape capstan caravel carrack catamaran clam clipper cod compass conch coracle cormorant cove crab current cutter
cuttlefish delta dhow dinghy dogger dolphin dory dugong eel eider estuary ferry fjord flounder frigate galleon galley
gannet grouper gull haddock halibut halyard harbour haven heron herring hull isle isthmus jetty junk kayak keel kelp
ketch krill lagoon lamprey lighthouse limpet lobster lugger mackerel manatee manta marlin mast minnow moray mussel
narwhal nautilus oar octopus orca osprey oyster paddle pelican penguin petrel pier pike pilot plover porpoise prawn
puffin quay raft ray reef rudder sailfish salmon sardine schooner scallop seal sextant shark shoal shrimp skate skiff
skipper sloop sole spar squid starfish stingray strait sturgeon swan swell tanker tarpon tern tide tiller trawler trout
tugboat tuna turbot turtle urchin walrus wave whale wharf whelk yacht yawl
"""

_ADJECTIVES = tuple(_ADJECTIVE_TEXT.split())
_NOUNS = tuple(_NOUN_TEXT.split())


def new_id() -> str:
    """64 random hexadecimal digits whose short form cannot be taken for a number (as in a hostname or a port)."""
    while True:
        id = secrets.token_hex(32)
        if not id[:12].isdecimal():
            return id


def random_name(attempt: int = 0) -> str:
    """``adjective_noun``; with a digit behind it once that has collided (``attempt`` > 0)."""
    name = f"{random.choice(_ADJECTIVES)}_{random.choice(_NOUNS)}"
    return f"{name}{random.randrange(10)}" if attempt else name


def check_name(name: str) -> str:
    """``name`` without its leading slash.

    Raises:
        InvalidParameter: in dockerd's words.
    """
    if not _NAME.fullmatch(name):
        raise InvalidParameter(f"Invalid container name ({name}), only {ALLOWED} are allowed")
    return name.removeprefix("/")
