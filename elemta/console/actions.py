"""What the forms of the pages change. Each gives the path of the page that comes next."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlencode

from elemta.console.mail_views import ACTIONS, chosen_action, matching
from elemta.console.visit import Page, Visit, segment
from elemta.ops.admin_errors import AdminRefusal

# One call takes so many ids.
_TOGETHER = 200
DESTINATION_ACTIONS = ("probe", "pause", "resume")
DAEMON_ACTIONS = ("reload", "drain", "undrain")


async def act_on_message(visit: Visit) -> Page | str:
    """Hold, release, retry, bounce or delete one message."""
    queue_id, action = visit.parts["id"], visit.parts["action"]
    _known(action)
    path = f"/v1/queue/{segment(queue_id)}"
    if action == "delete":
        await visit.delete(path)
        return f"/queue?{urlencode({'done': action})}"
    reason = {"reason": visit.form.get("reason", "")} if action == "hold" else {}
    await visit.post(f"{path}/{action}", reason)
    return f"/messages/{segment(queue_id)}?{urlencode({'done': action})}"


async def act_on_filter(visit: Visit) -> Page | str:
    """The same for all messages that the filters let through."""
    action, filters = chosen_action(visit, visit.form)
    ids, _ = await matching(visit, action, filters)
    done, refused = 0, []
    for start in range(0, len(ids), _TOGETHER):
        chosen = ",".join(ids[start : start + _TOGETHER])
        answer = await visit.post(f"/v1/queue/{action}", {"ids": chosen})
        for result in answer["results"]:
            if "error" in result:
                refused.append(result)
            else:
                done += 1
    return Page("acted.html", {"action": action, "count": done, "refused": refused[:100]})


async def reset_limit(visit: Visit) -> Page | str:
    """Forget what was counted for an identity."""
    limit, identity = visit.form.get("limit", ""), visit.form.get("identity", "")
    await visit.post("/v1/limits/reset", {"id": f"{limit}:{identity}" if limit else identity})
    return f"/limits?{urlencode({'done': 'reset'})}"


async def act_on_daemon(visit: Visit) -> Page | str:
    """Read the configuration again, or drain this node, or end that."""
    action = visit.parts["action"]
    if action not in DAEMON_ACTIONS:
        raise AdminRefusal(HTTPStatus.NOT_FOUND, "unknown action", f"known: {', '.join(DAEMON_ACTIONS)}")
    await visit.post(f"/v1/{action}")
    return f"/?{urlencode({'done': action})}"


async def override_limit(visit: Visit) -> Page | str:
    """Let other rates hold for an identity, or none, for a while."""
    given = {name: visit.form.get(name, "").strip() for name in ("limit", "identity", "for", "note")}
    rates = ",".join(visit.form.get("rates", "").replace(",", " ").split())
    terms = {"rates": rates} if rates else {"exempt": "true"}
    await visit.post("/v1/limits/overrides", {**given, **terms})
    return f"/limits?{urlencode({'done': 'override'})}"


async def remove_override(visit: Visit) -> Page | str:
    """End an override."""
    given = {name: visit.form.get(name, "") for name in ("limit", "identity")}
    await visit.delete("/v1/limits/overrides", given)
    return f"/limits?{urlencode({'done': 'removed'})}"


async def act_on_destination(visit: Visit) -> Page | str:
    """Probe, pause or resume one destination."""
    name, action = visit.form.get("name", ""), visit.parts["action"]
    if action not in DESTINATION_ACTIONS:
        raise AdminRefusal(HTTPStatus.NOT_FOUND, "unknown action", f"known: {', '.join(DESTINATION_ACTIONS)}")
    await visit.post(f"/v1/destinations/{segment(name)}/{action}")
    return f"/destinations?{urlencode({'done': action})}"


def _known(action: str) -> None:
    if action not in ACTIONS:
        raise AdminRefusal(HTTPStatus.NOT_FOUND, "unknown action", f"known: {', '.join(ACTIONS)}")
