"""The pages: which path is which page, which role may see it, and the frame that all of them have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from elemta import __version__
from elemta.auth.roles import AccessRole, Caller
from elemta.console import actions, limit_views, mail_views, pushed_limits, views
from elemta.console.access import ConsoleAccess, LoginRefused
from elemta.console.renderer import Renderer
from elemta.console.visit import Answer, Page, Visit, fields, session_cookie
from elemta.ops import audit
from elemta.ops.admin import AdminRequest
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import to_json

Handler = Callable[[Visit], Awaitable[Page | str]]
"""Gives a page, or the path of another one."""

# Path, title, and the call without which there is no such page; in the order of the menu.
MENU = (
    ("/", "Overview", "GET", "/v1/status"),
    ("/find", "Find", "GET", "/v1/find"),
    ("/queue", "Queue", "GET", "/v1/queue"),
    ("/destinations", "Destinations", "GET", "/v1/destinations"),
    ("/refused", "Refused", "GET", "/v1/refused"),
    ("/limits", "Limits", "GET", "/v1/limits/top"),
    ("/fleet", "Fleet", "GET", "/v1/nodes"),
    ("/sessions", "Sessions", "GET", "/v1/sessions"),
    ("/policies", "Policies", "GET", "/v1/plugins"),
    ("/explain", "Explain", "POST", "/v1/explain"),
    ("/configuration", "Configuration", "GET", "/v1/config"),
)

READ: Mapping[str, Handler] = {
    "/": views.overview,
    "/find": mail_views.find,
    "/queue": mail_views.queue,
    "/queue/act": mail_views.confirm,
    "/messages/{id}": mail_views.message,
    "/messages/{id}/content": mail_views.content,
    "/destinations": mail_views.destinations,
    "/refused": views.refused,
    "/limits": limit_views.limits,
    "/limits/networks": limit_views.networks,
    "/limits/push": pushed_limits.push_form,
    "/limits/rollback": pushed_limits.confirm_rollback,
    "/fleet": views.fleet,
    "/sessions": views.sessions,
    "/policies": views.policies,
    "/explain": limit_views.explain,
    "/configuration": views.configuration,
}
CHANGE: Mapping[str, Handler] = {
    "/queue/act": actions.act_on_filter,
    "/messages/{id}/{action}": actions.act_on_message,
    "/destinations/{action}": actions.act_on_destination,
    "/daemon/{action}": actions.act_on_daemon,
    "/limits/reset": actions.reset_limit,
    "/limits/push": pushed_limits.push,
    "/limits/push/check": pushed_limits.check_push,
    "/limits/push/edit": pushed_limits.edit_push,
    "/limits/rollback": pushed_limits.roll_back,
    "/limits/override": actions.override_limit,
    "/limits/override/remove": actions.remove_override,
}
# The words that are an ``{action}``.
_ACTIONS = (*mail_views.ACTIONS, *actions.DESTINATION_ACTIONS, *actions.DAEMON_ACTIONS)


class Pages:
    """Answers requests for pages."""

    def __init__(self, calls: CallTable, access: ConsoleAccess, renderer: Renderer) -> None:
        self._calls = calls
        self._access = access
        self._renderer = renderer
        self._menu = tuple((path, title) for path, title, method, call in MENU if calls.has(method, call))

    async def answer(self, request: AdminRequest) -> Answer:
        """The answer to a request for a page. Raises :class:`AdminRefusal`."""
        path = unquote(request.path.decode("ascii", "replace"))
        method = "GET" if request.method == b"HEAD" else request.method.decode("ascii", "replace")
        if method not in ("GET", "POST"):
            problem = "only GET, HEAD and POST are for pages"
            raise AdminRefusal(HTTPStatus.METHOD_NOT_ALLOWED, problem, "GET, HEAD, POST")
        if path == "/login":
            return await self._login(request, method)
        caller = await self._access.caller(request)
        if caller is None:
            return Answer.redirect("/login")
        if not caller.role.may(AccessRole.VIEWER):
            raise AdminRefusal(HTTPStatus.FORBIDDEN, f"the role {caller.role.value} has no pages")
        try:
            return await self._answer_caller(request, method, path, caller)
        except Exception as error:
            # Operations raise errors of many types; those that have an answer get it as a page with the menu.
            refusal = refusal_of(error)
            if refusal.status is HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            return self.error(refusal, caller)

    async def _answer_caller(self, request: AdminRequest, method: str, path: str, caller: Caller) -> Answer:
        form = _form(request) if method == "POST" else {}
        if method == "POST" and caller.csrf is not None:
            given = request.header(b"x-csrf-token") or form.get("csrf", "")
            self._access.check_csrf(request, caller, given)
        if path == "/logout":
            return self._logout(request, method, caller)
        return await self._visit(request, method, caller, form)

    async def _visit(
        self, request: AdminRequest, method: str, caller: Caller, form: Mapping[str, str]
    ) -> Answer:
        path, _, query = request.uri.decode("ascii", "replace").partition("?")
        if method == "POST" and not caller.role.may(AccessRole.OPERATOR):
            problem = f"the role {caller.role.value} may not do this"
            audit.change_refused(caller, "form", path, status=HTTPStatus.FORBIDDEN, problem=problem)
            raise AdminRefusal(HTTPStatus.FORBIDDEN, problem, "it needs the role operator")
        handler, parts = _find(READ if method == "GET" else CHANGE, path)
        if handler is None:
            other, named = _find(CHANGE if method == "GET" else READ, path)
            if other is not None and named.get("action", "hold") in _ACTIONS:
                allowed = "POST" if method == "GET" else "GET, HEAD"
                raise AdminRefusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not for this page", allowed)
            raise AdminRefusal(HTTPStatus.NOT_FOUND, "there is no such page", "the menu has all pages")
        visit = Visit(self._calls, caller, path, fields(query), form, parts)
        found = await handler(visit)
        if isinstance(found, str):
            return Answer.redirect(found)
        return self._answer(found, caller, path)

    def _answer(self, page: Page, caller: Caller | None, path: str) -> Answer:
        values: dict[str, Any] = {
            "menu": self._menu if caller is not None else (),
            "caller": caller,
            "operates": caller is not None and caller.role.may(AccessRole.OPERATOR),
            "csrf": "" if caller is None or caller.csrf is None else caller.csrf,
            "path": path,
            "elemta_version": __version__,
            **page.values,
        }
        return Answer(page.status, self._renderer.render(page.template, values))

    def error(self, refusal: AdminRefusal, caller: Caller | None = None) -> Answer:
        """A page that says why there is no other."""
        values = {
            "title": refusal.status.phrase,
            "problem": refusal.error,
            "hint": refusal.hint,
            "faults": to_json(refusal.more.get("faults", ())),
        }
        answer = self._answer(Page("error.html", values, refusal.status), caller, "")
        if refusal.status is HTTPStatus.METHOD_NOT_ALLOWED:
            # RFC 9110 §15.5.6
            return Answer(answer.status, answer.body, headers=((b"allow", refusal.hint.encode("ascii")),))
        return answer

    async def _login(self, request: AdminRequest, method: str) -> Answer:
        if method == "GET":
            return self._answer(Page("login.html", {"problem": "", "username": ""}), None, "/login")
        form = _form(request)
        username = form.get("username", "")
        try:
            cookie = await self._access.log_in(request, username, form.get("password", "").encode())
        except LoginRefused as refused:
            values = {"problem": refused.text, "username": username}
            found = self._answer(Page("login.html", values, refused.status), None, "/login")
            wait = str(max(1, round(min(refused.retry_after, 86400.0))))
            later = ((b"retry-after", wait.encode()),) if refused.retry_after else ()
            return Answer(found.status, found.body, headers=later)
        return Answer.redirect("/", session_cookie(cookie, secure=_is_secure(request)))

    def _logout(self, request: AdminRequest, method: str, caller: Caller) -> Answer:
        if method == "GET":
            return self._answer(Page("logout.html"), caller, "/logout")
        self._access.log_out(request, caller)
        return Answer.redirect("/login", session_cookie("", secure=_is_secure(request)))


def _is_secure(request: AdminRequest) -> bool:
    """Whether the browser speaks TLS, to this listener or to a proxy before it."""
    forwarded = request.header(b"x-forwarded-proto") or ""
    return bool(request.isSecure()) or forwarded.strip().lower() == "https"


def _form(request: AdminRequest) -> dict[str, str]:
    if not request.body:
        return {}
    if request.content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise AdminRefusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body is not a form")
    return fields(request.body.decode("utf-8", "replace"))


def _find(handlers: Mapping[str, Handler], path: str) -> tuple[Handler | None, dict[str, str]]:
    given = path.split("/")
    for pattern, handler in handlers.items():
        known = pattern.split("/")
        if len(known) != len(given):
            continue
        pairs = list(zip(known, given, strict=True))
        if all(name == text or (name.startswith("{") and text) for name, text in pairs):
            return handler, {name.strip("{}"): unquote(text) for name, text in pairs if name.startswith("{")}
    return None, {}
