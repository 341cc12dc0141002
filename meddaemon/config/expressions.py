"""Expressions over names, such as `T1 and (T2 or FLAIR)`, parsed to conditions.

    expression = term { "or" term }
    term       = factor { "and" factor }
    factor     = "not" factor | "(" expression ")" | name

A name holds when it is present among the attributes that the condition is asked of.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from meddaemon.config.problems import did_you_mean
from meddaemon.domain.conditions import All, Any, Condition, Not, Present

MAXIMUM_LENGTH = 1000
MAXIMUM_DEPTH = 20
"""Parentheses and `not` within each other."""
NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
WORDS = frozenset({"and", "or", "not"})
"""What cannot be a name, in upper case neither."""
_TOKEN = re.compile(rf"\s*(?:(?P<name>{NAME})|(?P<mark>[()])|(?P<end>\Z)|(?P<wrong>.))", re.DOTALL)


class InvalidExpression(ValueError):
    """What is written is no expression; says at which character, counted from 1."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"character {position}: {message}")


@dataclass(frozen=True)
class _Token:
    kind: str
    """A name, one of the words or marks, or "" for the end."""
    text: str
    position: int


def parse_expression(text: str, names: Collection[str]) -> tuple[Condition, frozenset[str]]:
    """Return the condition that the expression says, and the names it uses, which must be among `names`.

    Raises InvalidExpression.
    """
    if len(text) > MAXIMUM_LENGTH:
        raise InvalidExpression(MAXIMUM_LENGTH + 1, f"is longer than {MAXIMUM_LENGTH} characters")
    return _Parser(text, names).parse()


class _Parser:
    def __init__(self, text: str, names: Collection[str]) -> None:
        self._tokens = iter(_tokens(text))
        self._names = names
        self._used: set[str] = set()
        self._token = next(self._tokens)

    def parse(self) -> tuple[Condition, frozenset[str]]:
        condition = self._expression(0)
        if self._token.kind:
            what = "no parenthesis is open" if self._token.kind == ")" else "and/or expected before this"
            raise InvalidExpression(self._token.position, f"{self._token.text!r}: {what}")
        return condition, frozenset(self._used)

    def _take(self) -> _Token:
        token = self._token
        self._token = next(self._tokens, token)
        return token

    def _expression(self, depth: int) -> Condition:
        parts = [self._term(depth)]
        while self._token.kind == "or":
            self._take()
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _term(self, depth: int) -> Condition:
        parts = [self._factor(depth)]
        while self._token.kind == "and":
            self._take()
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _factor(self, depth: int) -> Condition:
        token = self._take()
        if depth > MAXIMUM_DEPTH:
            raise InvalidExpression(token.position, f"is nested more than {MAXIMUM_DEPTH} deep")
        if token.kind == "not":
            return Not(self._factor(depth + 1))
        if token.kind == "(":
            within = self._expression(depth + 1)
            if self._token.kind != ")":
                raise InvalidExpression(self._token.position, f"the parenthesis of character {token.position} is open")
            self._take()
            return within
        if token.kind != "name":
            had = f", not {token.text!r}" if token.text else ""
            raise InvalidExpression(token.position, f"the name of a required series expected{had}")
        if token.text not in self._names:
            hint = did_you_mean(token.text, self._names)
            raise InvalidExpression(token.position, f"there is no required series {token.text!r}{hint}")
        self._used.add(token.text)
        return Present(attribute=token.text, label=token.text)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while not tokens or tokens[-1].kind:
        found = _TOKEN.match(text, position)
        assert found is not None, "the pattern matches anything"  # noqa: S101
        position = found.end()
        kind = str(found.lastgroup)
        said, start = found[kind], found.start(kind) + 1
        if kind == "wrong":
            raise InvalidExpression(start, f"{said!r} has no meaning here: names, and, or, not, parentheses")
        if kind == "name" and said.lower() in WORDS:
            kind = said.lower()
        tokens.append(_Token({"mark": said, "end": ""}.get(kind, kind), said, start))
    return tokens
