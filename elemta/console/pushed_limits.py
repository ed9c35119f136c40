"""The pages about sets of limits that hold in the whole fleet: their history, a push, and a rollback."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from elemta.config.dumper import literal
from elemta.console.renderer import visible
from elemta.console.visit import Page, Visit
from elemta.errors import PushedMeanwhile, StoreUnavailable
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import to_json

# What was typed stays in the form then.
_REFUSALS = (AdminRefusal, StoreUnavailable, PushedMeanwhile)
_VERSION = re.compile(r"[0-9]{1,10}")


async def pushed_history(visit: Visit) -> Any:
    """The sets of limits that were pushed; None where there is no fleet, or it can't be asked now."""
    try:
        return await visit.get("/v1/limits/history")
    except StoreUnavailable:
        return None
    except AdminRefusal as refusal:
        if refusal.status is HTTPStatus.CONFLICT:
            return None
        raise


async def confirm_rollback(visit: Visit) -> Page:
    """What a rollback to a version would change, before it changes anything."""
    version = visit.query.get("version", "")
    report = await visit.post("/v1/limits/rollback", {"version": version, "dry_run": "true"})
    return Page("rollback.html", {"version": version, "report": report})


async def roll_back(visit: Visit) -> Page | str:
    """Push the limits of an earlier version again; ``base`` is the version that the page showed."""
    given = {name: visit.form.get(name, "").strip() for name in ("version", "base", "note")}
    await visit.post("/v1/limits/rollback", given)
    return "/limits?done=rollback"


@dataclass(frozen=True, slots=True)
class LimitSet:
    """What the form of a push has: the tables and the note, as the page shows them.

    What can't be seen is an escape in both, so that nothing else is pushed than was looked at.
    """

    toml: str
    note: str

    @classmethod
    def of_form(cls, form: Mapping[str, str]) -> LimitSet:
        # A browser ends each line of a form with CR LF.
        toml = form.get("toml", "").replace("\r\n", "\n").replace("\r", "\n")
        return cls(str(visible(toml)), str(visible(form.get("note", "").strip())))

    @property
    def body(self) -> dict[str, Any]:
        return {"toml": self.toml, "note": self.note}

    def page(self, refusal: AdminRefusal | None = None, *, report: Any = None) -> Page:
        """The form; with what is wrong, or with what the push would change."""
        values = {
            "toml": self.toml,
            "note": self.note,
            "report": report,
            "problem": "" if refusal is None else refusal.error,
            "hint": "" if refusal is None else refusal.hint,
            "faults": () if refusal is None else to_json(refusal.more.get("faults", ())),
        }
        return Page("push.html", values, HTTPStatus.OK if refusal is None else refusal.status)


async def push_form(visit: Visit) -> Page:
    """The limits that are in force, to be edited."""
    if not visit.operates:
        problem = f"the role {visit.caller.role.value} may not do this"
        raise AdminRefusal(HTTPStatus.FORBIDDEN, problem, "it needs the role operator")
    # Where there is no fleet to push to, it says so.
    await visit.get("/v1/limits/history")
    config = await visit.get("/v1/config")
    return LimitSet(_limit_tables(config["toml"]), "").page()


async def edit_push(visit: Visit) -> Page | str:
    """The form again, with what was in it."""
    return LimitSet.of_form(visit.form).page()


async def check_push(visit: Visit) -> Page | str:
    """Every fault of the set at once, or what a push of it would change."""
    given = LimitSet.of_form(visit.form)
    try:
        report = await visit.post_document("/v1/limits/push", {**given.body, "dry_run": True})
    except _REFUSALS as error:
        return given.page(refusal_of(error))
    return given.page(report=report)


async def push(visit: Visit) -> Page | str:
    """Push the set in place of version ``base``, with which the check compared it."""
    given = LimitSet.of_form(visit.form)
    base = visit.form.get("base", "")
    if not _VERSION.fullmatch(base):
        return given.page(AdminRefusal(HTTPStatus.BAD_REQUEST, "these limits were not checked"))
    try:
        await visit.post_document("/v1/limits/push", {**given.body, "base": int(base)})
    except _REFUSALS as error:
        return given.page(refusal_of(error))
    return "/limits?done=push"


def _limit_tables(config: str) -> str:
    """The ``[[limit]]`` tables of a configuration, without the rest of it."""
    tables = tomllib.loads(config).get("limit", ())
    return "\n".join(
        "[[limit]]\n" + "".join(f"{name} = {literal(value)}\n" for name, value in table.items())
        for table in tables
    )
