"""smtplib of Python's standard library."""

import os
import smtplib
import ssl
from pathlib import Path

e = os.environ
with smtplib.SMTP(e["HOST"], int(e["PORT"]), local_hostname="python.test", timeout=120) as client:
    if e["FEATURE"] in ("TLS", "AUTH"):
        context = ssl.create_default_context(cafile=e["CA"])
        context.check_hostname = False
        client.starttls(context=context)
    if e["FEATURE"] == "AUTH":
        client.login(e["AUTH_USER"], e["AUTH_PASSWORD"])
    options = ["SMTPUTF8", "BODY=8BITMIME"] if e["FEATURE"] == "SMTPUTF8" else []
    notify = ["NOTIFY=SUCCESS"] if e["FEATURE"] == "DSN" else []
    # It sends the octets that it gets, and turns line ends into CRLF only of text in ASCII.
    content = Path(e["MESSAGE"]).read_bytes().replace(b"\n", b"\r\n")
    client.sendmail(e["SENDER"], [e["RECIPIENT"]], content, options, notify)
