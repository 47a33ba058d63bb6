"""A conversation, laid out as the conversations that a model was trained on."""

from collections.abc import Iterator

from model.text.continuation import Continuation
from model.text.documents import TURN_END


class Chat:
    """Turns of a user and of a model, one after the other; the state does not grow with them.

    The layout says where a turn ends and not whose the next is, so a reply is one line.
    """

    def __init__(self, continuation: Continuation) -> None:
        self._continuation = continuation
        self._open = False  # whether the last turn still lacks its end

    def say(self, text: str) -> Iterator[str]:
        """The reply to a user's turn, in a piece of text for each token, without what ends it.

        It ends where the next turn would begin, or after `max_tokens` tokens; line ends before its first word are left
        out.

        Raises:
            ValueError: at once, for text that is not valid.
        """
        self._continuation.read((TURN_END if self._open else "") + text + TURN_END)
        self._open = True
        return self._reply()

    def _reply(self) -> Iterator[str]:
        begun = False
        for piece in self._continuation.pieces():
            shown = piece if begun else piece.lstrip(TURN_END)
            before, end, _ = shown.partition(TURN_END)
            begun = begun or bool(before.strip())
            if end and begun:
                self._open = False
                yield before
                return
            yield before
