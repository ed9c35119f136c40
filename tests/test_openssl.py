"""What OpenSSL says, in words."""

from __future__ import annotations

import pytest
from OpenSSL import SSL, crypto

from elemta.openssl import openssl_words

NO_REASON = "OpenSSL gives no reason"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SSL.Error([("SSL routines", "", "no shared cipher")]), "no shared cipher"),
        (crypto.Error([("", "", "bad decrypt"), ("", "", "no start line")]), "bad decrypt; no start line"),
        (SSL.SysCallError(-1, "Unexpected EOF"), "Unexpected EOF"),
        (SSL.ZeroReturnError(), NO_REASON),
        (SSL.Error([]), NO_REASON),
        (SSL.Error([("", "", "")]), NO_REASON),
        (OSError("no such file"), ""),
    ],
)
def test_an_error_is_said_in_openssls_own_words(error: Exception, words: str) -> None:
    assert openssl_words(error) == words
