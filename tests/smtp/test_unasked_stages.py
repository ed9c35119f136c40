"""Stages at which nothing is asked: the client gets the same replies, and the shell is asked less."""

from __future__ import annotations

import pytest

from elemta.smtp.events import (
    DataQuestion,
    HeloQuestion,
    MailQuestion,
    MessageQuestion,
    Question,
    Response,
)
from elemta.stage import Stage
from tests.smtp.transcript import DATA, ENVELOPE, QUEUED, Conversation, converse, play, proceed, whole

MESSAGES = {
    "DATA": DATA + "C: x\nC: .\n" + QUEUED,
    "BDAT": ENVELOPE + "C> BDAT 5 LAST\\r\\nx\\r\\n\\r\\n\n" + QUEUED,
    "two chunks": ENVELOPE + "C> BDAT 3\\r\\nx\\r\\n\nS: 250 ...\nC> BDAT 2 LAST\\r\\n\\r\\n\n" + QUEUED,
    "DATA without a recipient": "\n".join(DATA.splitlines()[:5]) + "\nC: DATA\nS: 554 ...\n",
}
UNASKED = {Stage.HELO: HeloQuestion, Stage.DATA: DataQuestion}


@pytest.mark.parametrize("script", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("unasked", [(), (Stage.HELO,), (Stage.DATA,), tuple(UNASKED)])
def test_the_client_sees_no_difference(script: str, unasked: tuple[Stage, ...]) -> None:
    asked: list[type[Question]] = []

    def answer(question: Question) -> Response:
        asked.append(type(question))
        return proceed(question)

    told = converse(script, answer, unasked=frozenset(unasked))
    plain = converse(script)
    names = {("asked", UNASKED[stage].__name__) for stage in unasked}
    assert told.facts_told() == [fact for fact in plain.facts_told() if fact not in names]
    assert not {UNASKED[stage] for stage in unasked} & set(asked)
    # MAIL, RCPT and the message are always asked about.
    assert MailQuestion in asked
    assert (MessageQuestion in asked) == ("Q1" in script)


@pytest.mark.parametrize("unasked", [(), (Stage.DATA,)])
def test_input_behind_data_ends_the_session_all_the_same(unasked: tuple[Stage, ...]) -> None:
    script = ENVELOPE + "C: DATA\nC: x\nS: 554 ...\nX:\n"
    play(script, Conversation.begin(proceed, whole, unasked=frozenset(unasked)))
