"""Word pools that several generators share."""

from __future__ import annotations

__all__ = ["FEMALE", "MALE", "NAMES", "NOUNS", "OBJECTS", "PLACES", "PLAIN_WORDS", "listed"]


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


MALE = listed(
    """
    James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony
    Mark Donald Steven Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason
    Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin
    Samuel Frank Gregory Raymond Alexander Patrick Jack Dennis Jerry Tyler Aaron Henry Peter Adam
    Nathan Walter Kyle Harold Carl Arthur Roger Keith Jeremy Lawrence Sean Christian Albert Jesse
    Bruce Simon Ralph Eugene Louis Philip Harry Martin Victor Oliver Leonard Hugh Neil
    """
)
FEMALE = listed(
    """
    Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Betty
    Sandra Margaret Ashley Emily Kimberly Donna Michelle Carol Amanda Melissa Deborah Stephanie
    Rebecca Laura Helen Sharon Cynthia Kathleen Amy Angela Anna Ruth Brenda Pamela Nicole
    Katherine Virginia Catherine Christine Samantha Janet Rachel Carolyn Emma Maria Heather Diane
    Julie Joyce Victoria Kelly Christina Joan Evelyn Olivia Lauren Judith Megan Andrea Hannah
    Jacqueline Martha Gloria Teresa Ann Sara Madison Frances Kathryn Janice Jean Alice Abigail
    Julia Judy Sophia Grace Denise Marilyn Amber Danielle Rose Diana Natalie Charlotte Jane Claire
    """
)
NAMES = tuple(sorted({*MALE, *FEMALE}))

PLACES = listed(
    """
    park store school garden hospital station office restaurant market library museum theater
    beach hotel church farm bank factory kitchen bakery
    """
)
OBJECTS = listed(
    """
    book drink ring ball necklace computer basketball bottle key letter map phone coin bag gift
    ticket camera knife hat blanket
    """
)
NOUNS = (
    ("teacher", "teachers"),
    ("student", "students"),
    ("doctor", "doctors"),
    ("farmer", "farmers"),
    ("lawyer", "lawyers"),
    ("driver", "drivers"),
    ("writer", "writers"),
    ("singer", "singers"),
    ("actor", "actors"),
    ("player", "players"),
    ("manager", "managers"),
    ("worker", "workers"),
    ("soldier", "soldiers"),
    ("artist", "artists"),
    ("scientist", "scientists"),
    ("boy", "boys"),
    ("girl", "girls"),
    ("king", "kings"),
    ("friend", "friends"),
    ("officer", "officers"),
    ("guard", "guards"),
    ("engineer", "engineers"),
    ("leader", "leaders"),
    ("parent", "parents"),
    ("neighbor", "neighbors"),
    ("customer", "customers"),
    ("patient", "patients"),
    ("captain", "captains"),
    ("author", "authors"),
    ("dancer", "dancers"),
)
PLAIN_WORDS = listed(
    """
    apple water stone river table chair window door paper green yellow silver winter summer
    morning evening mountain forest island ocean bridge tower castle village city street garden
    flower animal horse tiger mouse rabbit bird snake sheep chicken bread butter cheese sugar salt
    pepper coffee glass bottle plate spoon knife shirt shoe coat dress button pocket mirror
    candle clock lamp carpet picture letter pencil school church market doctor farmer soldier
    captain music piano guitar drum dance story poem engine wheel metal copper iron wood cotton
    leather circle square corner number weight cloud storm thunder shadow light planet star moon
    rocket train plane ship boat truck bicycle ticket coin money bank office factory machine
    """
)
