"""What may follow in a place of a document is computed once for all answers of a grammar.

A place is the outline of a document and the text behind that. Where no schema tells alternatives apart by what strings
and numbers hold (`worker.text.grammar.document_growth.Growth.tells_by_place`), the next token depends on these alone:
not on what the strings and numbers of the outline hold, and in a string that may have any text only on how long it is.
Places know what tokens lead to others: so an answer goes on from place to place, and the matcher of its grammar need
not be asked where others have been.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llguidance import LLMatcher

from worker.engine.token_constraint import TokenMask
from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.grammar_text import MOST_SPACE
from worker.text.grammar.known_closing import KnownClosing
from worker.text.grammar.places.characters import count_characters
from worker.text.grammar.places.place import ANY_TOKEN, Place, WhiteSpace
from worker.text.grammar.places.place_memory import PlaceMemory
from worker.text.grammar.places.place_text import PlaceText, text_behind
from worker.text.grammar.places.string_masks import AlikeStrings, StringMasks
from worker.text.grammar.places.white_space import FittingMasks, SpaceMasks

if TYPE_CHECKING:
    from worker.text.grammar.lexers import KeptState

PLACE_BYTES, TOKEN_BYTES, STATE_BYTES = 600, 100, 100
"""About what Python takes for a place, for a token that leads to another, and llguidance for one that it has taken."""
MAX_OUTLINE, MAX_TEXT, MAX_DIGITS = 4096, 64, 3
"""Bytes of outlines, texts and numbers in places that are kept: answers seldom come together in longer ones."""
MAX_MISSED, MAX_STATES = 1024, 512
MOST_PROBED = 300
"""Characters of strings that are counted."""
PROBES = b"~^|`@#%zqZQXKWVJ"
_NUMBERS = frozenset(b"-0123456789")
"""What numbers begin with."""


class DocumentPlaces:
    """The places in the documents of one grammar."""

    def __init__(self, memory: PlaceMemory, alphabet: Alphabet, probe_id: int) -> None:
        """``probe_id``: the token of a character that only strings with any text may have."""
        self._memory = memory
        self._is_in_use, self._num_uncounted, self._num_states = False, 0, 0
        self._alphabet = alphabet
        self.probe_id = probe_id
        self._kept: dict[tuple[bytes, bytes], Place] = {}
        self._lengths: dict[bytes, dict[int, Place]] = {}  # by outlines behind which a string may have any text
        self._strings: dict[bytes, StringMasks] = {}  # of these
        # Behind white space, by outlines.
        self._closings: dict[bytes, dict[tuple[int, KnownClosing], KnownClosing]] = {}
        self._spaces: dict[bytes, WhiteSpace] = {}
        self._behind_numbers: dict[bytes, dict[int, Place]] = {}
        self._families: dict[tuple[int, TokenMask], AlikeStrings] = {}
        self._masks: dict[bytes, TokenMask] = {}
        self._fitting = FittingMasks(alphabet, self._shared)
        self._missed: dict[tuple[Place, int], PlaceText] = {}  # what `after` has made of a token, for `follow`
        self.beginning = Place(b"", b"", 0, b"", False, -1, alphabet, {})
        self.quote_id = alphabet.quote_id
        """The token that ends a string."""
        self._only_spaces = alphabet.only_spaces

    def begin_use(self) -> None:
        """From now on the thread that counts for all grammars asks."""
        self._memory.note(self, self._num_uncounted)
        self._is_in_use = True

    def _count(self, num_bytes: int) -> None:
        if self._is_in_use:
            self._memory.add(self, num_bytes)
        else:
            self._num_uncounted += num_bytes

    def forget(self) -> None:
        """Know nothing of any place."""
        of_strings = [place for lengths in self._lengths.values() for place in lengths.values()]
        for place in (self.beginning, *self._kept.values(), *of_strings):
            place.next, place.forced, place.spelled, place.closings, place.ends = {}, {}, {}, {}, {}
            place.mask, place.is_free, place.state = None, False, None
            place.counted.clear()
        self._kept, self._masks, self._missed = {}, {}, {}
        self._fitting.forget()
        for lengths in self._lengths.values():
            lengths.clear()
        for space in self._spaces.values():
            space.forget()
        for behind in self._behind_numbers.values():
            behind.clear()
        self._lengths, self._strings, self._families, self._closings, self._spaces = {}, {}, {}, {}, {}
        self._behind_numbers, self._num_states = {}, 0

    def after(self, place: Place, token_id: int) -> Place | None:
        """The place behind ``place`` and a token that may come there, if that is known."""
        found = self._led_to(place, token_id)
        if found is None and place.is_kept:
            behind = self._missed.pop((place, token_id), None) or text_behind(place, token_id)
            found = self._same(place, token_id, behind, *behind.length())
            if found is None and self._is_within_space(behind):
                found = self._in_space(self._place(behind))
                self._lead(place, token_id, found)
            elif found is None and len(self._missed) < MAX_MISSED:
                self._missed[place, token_id] = behind
        return found

    def follow(self, place: Place, token_id: int, state: LLMatcher) -> Place:
        """The place behind ``place`` and a token that ``state`` has taken there."""
        found = self._led_to(place, token_id)
        if found is not None:
            return found
        text = self._missed.pop((place, token_id), None) or text_behind(place, token_id)
        length, half = text.length()
        found = self._same(place, token_id, text, length, half) if place.is_kept else None
        if found is not None:
            return found
        behind = self._place(text)
        behind.is_complete = state.is_stopped()
        if half or (length >= 0 and not self._may_have_any_text(behind.outline, length, state)):
            length = -1
        found = self._in_string(behind, length) if length >= 0 else self._known(behind, state)
        if place.is_kept and found.is_kept:
            self._lead(place, token_id, found)
        return found

    def _led_to(self, place: Place, token_id: int) -> Place | None:
        """The place that ``place`` leads to, if somebody has taken such a token there."""
        key = place.keys[token_id]
        found = place.behind(key)
        if found is None and key < 0 <= place.length:
            return self._in_string(place, place.length - key)
        if found is None and place.string is not None:
            counted = count_characters(place.text[1:] + self._alphabet.texts[token_id])
            if counted is not None:
                return self._in_text(place, place.num_dropped + counted[0], counted[1])
        return found

    def _same(self, place: Place, token_id: int, behind: PlaceText, length: int, half: bytes) -> Place | None:
        """The known place that ``behind`` is, behind ``place`` and a token; ``length``, ``half``: see `PlaceText`."""
        lengths = self._lengths.get(behind.outline) if length >= 0 else None
        if lengths is None:
            found = None if behind.num_dropped else self._kept.get((behind.outline, behind.text))
        elif half:
            return self._in_text(self._place(behind), length, half)
        else:
            found = lengths.get(length)
        if found is not None:
            self._lead(place, token_id, found)
        return found

    def keep_closing(self, place: Place, last_id: int, earlier: KnownClosing, closing: KnownClosing) -> None:
        """Tell others what closes the document in ``place``, see `Place.known_closing`."""
        if place.is_kept:
            place.closings[ANY_TOKEN if place.is_open else last_id, earlier] = closing
            if place.outer:  # else the document may be whole already
                earlier.note_end(closing, place.ends_of(earlier))
            self._count(2 * TOKEN_BYTES + 8 * closing.length)

    def _lead(self, place: Place, token_id: int, behind: Place) -> None:
        key = place.keys[token_id]
        if key < 0:
            place.counted[place.num_counted - key] = behind
        else:
            place.next[key] = behind
        self._count(TOKEN_BYTES)

    def keep_mask(self, place: Place, words: bytes) -> TokenMask:
        """Tell others what the mask of the next token is in ``place``."""
        if not place.is_kept and place.string is None:
            return TokenMask(words)
        known = place.mask = self._shared(words)
        if place.string is not None and not place.is_kept:
            place.string.learn_half(place.num_dropped, place.text[1:], known)
        elif place.string is not None:
            may_end = words[self.quote_id >> 3] >> (self.quote_id & 7) & 1
            place.string.learn(place.length, known, may_end=bool(may_end))
        if place.space is not None:
            place.space.masks.learn(len(place.text), known)
        return known

    def keep_state(self, place: Place, kept: KeptState) -> None:
        """Have others that come to ``place`` go on from a copy of that."""
        if place.is_kept and self._num_states < MAX_STATES:
            self._num_states += 1
            place.state = kept._replace(state=kept.state.deep_copy())
            self._count(STATE_BYTES * kept.num_taken)

    def _shared(self, words: bytes) -> TokenMask:
        """The mask of these, as many places have the same one."""
        known = self._masks.get(words)
        if known is None:
            known = self._masks[words] = TokenMask(words)
            self._count(len(words))
        return known

    @staticmethod
    def _is_within_space(place: Place | PlaceText) -> bool:
        """Whether it is behind white space that may go on, in an object or array: then other tokens may come, too."""
        return bool(place.outer) and len(place.text) < MOST_SPACE and place.text.isspace()

    def _in_space(self, place: Place) -> Place:
        """A place within white space, which is kept: all that is to be known of it is told by its outline."""
        place.is_kept = len(place.outline) <= MAX_OUTLINE
        place.closings = self._closings.setdefault(place.outline, {})  # the same, however much white space
        place.keep_forced(ANY_TOKEN, ())
        place.begin_space(self._space_behind(place.outline))
        if place.is_kept:
            self._kept[place.outline, place.text] = place
            self._count(PLACE_BYTES + len(place.outline))
        return place

    def _space_behind(self, outline: bytes) -> WhiteSpace:
        found = self._spaces.get(outline)
        if found is None:
            found = self._spaces[outline] = WhiteSpace(SpaceMasks(self._fitting))
        return found

    def _place(self, text: PlaceText) -> Place:
        known = text.outline, text.text, text.num_dropped, text.outer, text.is_name_next
        return Place(*known, -1, self._alphabet, {}, starts=text.starts)

    def _may_have_any_text(self, outline: bytes, length: int, state: LLMatcher) -> bool:
        """Whether the string behind ``outline`` may; it has ``length`` characters in ``state``."""
        if outline in self._lengths:
            return True
        num_more = state.validate_tokens([self.probe_id] * MOST_PROBED)
        if num_more:
            is_bounded, far = num_more < MOST_PROBED, (self._alphabet.most_bytes, self._alphabet.most_within)
            self._strings[outline] = StringMasks(length + num_more, is_bounded, *far, self._families)
        return num_more > 0

    def _in_string(self, place: Place, length: int) -> Place:
        """So many characters behind the beginning of the string that ``place`` is in."""
        found = place.lengths.get(length)
        if found is None:
            outline, outer = place.outline, place.outer
            lengths = self._lengths.setdefault(outline, {})
            found = lengths.get(length)
            if found is None:
                string = self._string_of(place)
                found = Place(
                    outline, b'"', length, outer, False, length, self._alphabet, lengths, string, starts=place.starts
                )
                if string.room(length):
                    found.keep_forced(ANY_TOKEN, ())  # as it may have any text
                lengths[length] = found
                self._count(PLACE_BYTES + len(outline))
        return found

    def _in_text(self, place: Place, length: int, half: bytes) -> Place:
        """Behind so many characters of the string that ``place`` is in, and the beginning of one more, if any.

        The latter is not kept: what may follow is told by the string.
        """
        if not half:
            return self._in_string(place, length)
        string = self._string_of(place)
        outline, text, outer, starts = place.outline, b'"' + half, place.outer, place.starts
        found = Place(outline, text, length, outer, False, -1, self._alphabet, {}, string, starts=starts, is_kept=False)
        if string.room(length):
            found.keep_forced(ANY_TOKEN, ())
        return found

    def _string_of(self, place: Place) -> StringMasks:
        """What is known of the string that ``place`` is in, or behind whose outline it is."""
        found = self._strings.get(place.outline)
        if found is None:
            assert place.string is not None, "a string whose length nobody has looked for"
            found = self._strings[place.outline] = place.string.anew(self._families)  # it was forgotten meanwhile
        return found

    def _known(self, place: Place, state: LLMatcher) -> Place:
        """The place that is kept and is the same as ``place``, or ``place``, where ``state`` is."""
        outline, text = place.outline, place.text
        is_number = bool(text) and text[0] in _NUMBERS
        most = MAX_DIGITS if is_number else MAX_TEXT
        # Of a string that is cut only its end is known.
        is_cut = len(outline) > MAX_OUTLINE or len(text) > most or place.num_dropped
        if is_cut or (text.startswith(b'"') and not place.is_name_next and outline in self._lengths):
            place.is_kept = False
        found = self._kept.get((outline, text)) if place.is_kept else place
        if found is None and self._is_within_space(place):
            return self._in_space(place)
        if found is None and (must := state.compute_ff_bytes()):
            place.is_open, place.must = False, must
        if found is None and place.outer and (not text or text.isspace()):
            space = self._space_behind(outline)
            place.ends, place.next = space.ends, space.next
            if not text:
                place.begin_space(space)
        if found is None and is_number:
            place.begin_number(self._behind_numbers.setdefault(outline, {}))
        if found is None:
            found = self._kept[outline, text] = place
            self._count(PLACE_BYTES + len(outline) + len(text))
        return found
