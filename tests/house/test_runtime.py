"""What reaches the world outside, and the order in which things are done, is in the hands of a test.

Time, randomness and threads come from ``elemta.runtime``; nothing is done in the order of a set, which
differs from one process to the next.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import elemta

ROOT = Path(elemta.__file__).parent
RUNTIME = ROOT / "runtime"
MODULES = sorted(path for path in ROOT.rglob("*.py") if RUNTIME not in path.parents)

# Whole modules, and what may still be taken from them: functions that depend on nothing but their arguments,
# and locks.
CLOSED: dict[str, frozenset[str]] = {
    "random": frozenset(),
    "secrets": frozenset(),
    "uuid": frozenset(),
    "concurrent.futures": frozenset(),
    "twisted.internet.threads": frozenset(),
    "twisted.python.threadpool": frozenset(),
    "threading": frozenset({"Lock", "RLock"}),
    "time": frozenset({"gmtime", "strftime"}),
    "multiprocessing": frozenset(),
}
# Names of their own, whatever they are taken from.
CLOSED_NAMES = {
    "urandom",
    "getrandom",
    "deferToThread",
    "deferToThreadPool",
    "callInThread",
    "callInThreadWithCallback",
    "getThreadPool",
    "ThreadPool",
    "SystemRandom",
}
# The time of day: these give that of now where they are given no other.
_NOW = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "runtime.seconds"}
_WITHOUT_A_DATE = {"ctime", "localtime", "gmtime", "asctime", "formatdate"}


def reaches(tree: ast.AST) -> Iterator[str]:
    """Where a module reads a clock, draws a random number or makes a thread by itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in CLOSED and not CLOSED[alias.name]:
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            open_names = CLOSED.get(node.module or "")
            for alias in node.names:
                if (open_names is not None and alias.name not in open_names) or alias.name in CLOSED_NAMES:
                    yield f"{node.lineno}: from {node.module} import {alias.name}"
        elif isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            closed = isinstance(owner, ast.Name) and name in CLOSED and node.attr not in CLOSED[name]
            if closed or node.attr in CLOSED_NAMES or f"{name}.{node.attr}" in _NOW:
                yield f"{node.lineno}: {name}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in _WITHOUT_A_DATE and not node.args:
                yield f"{node.lineno}: {called}()"


def test_time_randomness_and_threads_come_from_the_runtime() -> None:
    found = [
        f"{path.relative_to(ROOT.parent)}:{reached}"
        for path in MODULES
        for reached in reaches(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import time\nx = time.time()",
        "import time\nx = time.monotonic",
        "import time\nx = time.clock_gettime(time.CLOCK_BOOTTIME)",
        "import time\nx = time.perf_counter()",
        "import time\nx = time.gmtime()",
        "from time import time as now",
        "import datetime\nx = datetime.datetime.now()",
        "import random",
        "from random import SystemRandom",
        "import secrets",
        "import os\nx = os.urandom(16)",
        "from os import urandom",
        "import threading\nthreading.Thread(target=print)",
        "from threading import Thread",
        "from twisted.internet.threads import deferToThread",
        "from twisted.internet import threads\nthreads.deferToThread(print)",
        "from twisted.python.threadpool import ThreadPool",
        "reactor.getThreadPool()",
        "reactor.callInThread(print)",
    ],
)
def test_each_way_past_the_runtime_is_seen(source: str) -> None:
    assert list(reaches(ast.parse(source)))


def test_what_depends_on_its_arguments_alone_is_free() -> None:
    source = "import time, threading\nx = time.gmtime(3)\nlock = threading.Lock()"
    assert list(reaches(ast.parse(source))) == []


def test_delivery_and_the_spool_take_no_date_from_the_reactor() -> None:
    """It is monotonic there, and nearly all that these two ask for is a date."""
    asked = [
        f"{path.name}:{number}"
        for package in ("delivery", "spool")
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        # How long hosts were slow, and threads hung.
        if "reactor.seconds()" in line and path.name not in ("dialer.py", "maildir_threads.py")
    ]
    assert asked == []


# Sets

Declared = frozenset[tuple[str, bool]]

# These give the same whatever the order.
_ORDERLESS = {"sorted", "any", "all", "len", "sum", "min", "max", "set", "frozenset", "Counter"}
_ORDERED = {"list", "tuple", "iter", "enumerate", "deque", "join", "extend", "DeferredList", "gatherResults"}
_UNIONS = (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)
# Where the order of a set reaches nothing outside.
ORDER_IS_NOTHING = {
    "elemta/delivery/destinations.py: destination.tried": "keys that a query leaves out",
}


class SetOrder(ast.NodeVisitor):
    """Finds where a module goes through a set, as far as it says that something is one.

    ``attributes`` are the names that sets have in the objects of any module.
    """

    def __init__(self, tree: ast.AST, attributes: frozenset[str] = frozenset()) -> None:
        self.found: list[str] = []
        self._free: set[ast.AST] = set()
        self._attributes = attributes
        self._locals = [set(_sets_in(tree))]
        self.visit(tree)

    def _is_set(self, node: ast.expr) -> bool:
        if isinstance(node, ast.BinOp) and isinstance(node.op, _UNIONS):
            return self._is_set(node.left) or self._is_set(node.right)
        if isinstance(node, ast.Attribute):
            return node.attr in self._attributes
        return _makes_set(node) or (isinstance(node, ast.Name) and node.id in self._locals[-1])

    def _through(self, node: ast.expr) -> None:
        if self._is_set(node):
            self.found.append(f"{node.lineno}: {ast.unparse(node)}")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._locals.append(self._locals[-1] - set(_names_in(node)) | set(_sets_in(node)))
        self.generic_visit(node)
        self._locals.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_For(self, node: ast.For) -> None:
        self._through(node.iter)
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        self._through(node.value)
        self.generic_visit(node)

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.DictComp) -> None:
        if node not in self._free:
            for generator in node.generators:
                self._through(generator.iter)
        self.generic_visit(node)

    visit_ListComp = visit_GeneratorExp = visit_DictComp = _comprehension

    def visit_Set(self, node: ast.Set) -> None:
        self._free.update(each for each in node.elts)
        for each in node.elts:
            self.visit(each.value if isinstance(each, ast.Starred) else each)

    def visit_Call(self, node: ast.Call) -> None:
        called = _name(node.func)
        if called in _ORDERLESS:
            self._free.update(node.args)
        elif called in _ORDERED:
            for argument in node.args:
                self._through(argument)
        elif called == "pop" and not node.args and isinstance(node.func, ast.Attribute):
            self._through(node.func.value)
        self.generic_visit(node)


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module or a function, without those of the functions in it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _own_nodes(node)


def _sets_in(scope: ast.AST) -> Iterator[str]:
    """The variables and parameters of a scope that are annotated or made as sets."""
    for node in _own_nodes(scope):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if _is_set_type(node.annotation):
                yield node.target.id
        elif isinstance(node, ast.arg) and node.annotation is not None:
            if _is_set_type(node.annotation):
                yield node.arg
        elif isinstance(node, ast.Assign) and _makes_set(node.value):
            yield from (each.id for each in node.targets if isinstance(each, ast.Name))


def _names_in(scope: ast.AST) -> Iterator[str]:
    for node in _own_nodes(scope):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def attributes_of(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """The attributes that the classes of a module declare, and whether each is a set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
            yield node.target.attr, _is_set_type(node.annotation)
        elif isinstance(node, ast.Assign) and _makes_set(node.value):
            yield from ((each.attr, True) for each in node.targets if isinstance(each, ast.Attribute))
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.AnnAssign):
                    yield _name(each.target), _is_set_type(each.annotation)


def set_attributes(own: Declared, public: frozenset[str] = frozenset()) -> frozenset[str]:
    """The names that are sets: by the module itself, and ``public`` ones of others that it does not have."""
    return frozenset({name for name, is_set in own if is_set} | (public - {name for name, _ in own}))


def public_sets(declared: Iterable[Declared]) -> frozenset[str]:
    """The public attributes that are sets in every module that has them."""
    found = {each for own in declared for each in own}
    return frozenset(name for name, _ in found if (name, False) not in found and not name.startswith("_"))


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_set_type(node: ast.expr) -> bool:
    outer = node.value if isinstance(node, ast.Subscript) else node
    return _name(outer) in {"set", "frozenset", "Set", "AbstractSet", "MutableSet"}


def _makes_set(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return isinstance(node, ast.Set | ast.SetComp) or (called and node.func.id in {"set", "frozenset"})  # type: ignore[attr-defined]


def set_orders() -> Iterator[str]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    declared = {path: frozenset(attributes_of(tree)) for path, tree in trees.items()}
    public = public_sets(declared.values())
    for path, tree in trees.items():
        for found in SetOrder(tree, set_attributes(declared[path], public)).found:
            yield f"{path.relative_to(ROOT.parent)}:{found}"


def test_nothing_is_done_in_the_order_of_a_set() -> None:
    found = {_place(each): each for each in set_orders()}
    assert {each for place, each in found.items() if place not in ORDER_IS_NOTHING} == set()
    places = set(found)
    assert sorted(set(ORDER_IS_NOTHING) - places) == [], "the table names what is not there any more"


def _place(found: str) -> str:
    """The module and the expression, without the line."""
    path, _, expression = found.split(":", 2)
    return f"{path}: {expression.strip()}"


@pytest.mark.parametrize(
    "source",
    [
        "for x in {1, 2}: print(x)",
        "seen = set()\nfor x in seen: print(x)",
        "class A:\n    open: set[int]\n    def f(self): return [x for x in self.open]",
        "def f(names: frozenset[str]): return list(names)",
        "def f(names: frozenset[str]): return ', '.join(names)",
        "def f(names: set[str]): return names.pop()",
        "def f(names: set[str]): return (*names, 1)",
        "def f(names: set[str], more: list[str]): return tuple(names | more)",
    ],
)
def test_each_way_through_a_set_is_seen(source: str) -> None:
    tree = ast.parse(source)
    assert SetOrder(tree, set_attributes(frozenset(attributes_of(tree)))).found


@pytest.mark.parametrize(
    "source",
    [
        "def f(names: set[str]): return sorted(names)",
        "def f(names: set[str]): return any(x for x in names)",
        "def f(names: set[str]): return {x for x in names}",
        "def f(names: dict[str, int]): return list(names)",
    ],
)
def test_what_has_no_order_is_free(source: str) -> None:
    assert SetOrder(ast.parse(source)).found == []
