"""Reads a normalised answer, the whole of it or nothing: what is left unread refuses the answer."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from framework.rewards.maths.tokens import GREEK, Unreadable, tokens_of
from framework.rewards.maths.tree import FUNCTIONS, Node, number

MAX_DEPTH = 40  # of brackets within brackets
RELATIONS = ("=", "<", ">", "<=", ">=", "!=")
_CLOSING = {"(": ")", "[": "]", "]": "]", "{": "}", r"\{": r"\}", "|": "|"}
MATRICES = ("matrix}", "pmatrix}", "bmatrix}", "Bmatrix}", "array}", "smallmatrix}")
MAX_POWER_OF_TEN = 10_000


def parse(text: str) -> Node | None:
    """Return the tree of a normalised text, or None."""
    try:
        parser = _Parser(tokens_of(text))
        node = parser.answer()
        return node if parser.done else None
    except (Unreadable, ValueError, RecursionError):
        return None


class _Parser:
    """Recursive descent over the tokens; precedence from `answer` down to `atom`."""

    def __init__(self, tokens: list[tuple[str, str, bool]]) -> None:
        self._tokens, self._at, self._depth = tokens, 0, 0

    @property
    def done(self) -> bool:
        return self._at == len(self._tokens)

    def answer(self) -> Node:
        """A list, or one item."""
        items, joints = [self._relation()], []
        while joint := self._take(",", ";", "and", "or"):
            joints.append(self._take("and", "or") or joint)
            items.append(self._relation())
        if len(items) == 1:
            return items[0]
        return Node("list", tuple(items), "and" if set(joints) == {"and"} else "")

    def _relation(self) -> Node:
        parts, signs = [self._union()], []
        while self._peek() in (*RELATIONS, r"\in"):
            signs.append(self._next())
            parts.append(self._union())
        return Node("relation", tuple(parts), " ".join(signs)) if signs else parts[0]

    def _union(self) -> Node:
        parts = [self.sum()]
        while self._peek() in (r"\cup", "U") and parts[-1].kind in ("tuple", "interval", "set"):
            self._next()
            parts.append(self.sum())
        return Node("union", tuple(parts)) if len(parts) > 1 else parts[0]

    def sum(self) -> Node:
        terms: list[Node] = []
        if sign := self._take(r"\pm"):
            terms.append(Node("plusminus", (number(0), self._product())))
        else:
            terms.append(self._product())
        while sign := self._take("+", "-", r"\pm"):
            term = self._product()
            if sign == r"\pm":
                left = terms[0] if len(terms) == 1 else Node("sum", tuple(terms))
                terms = [Node("plusminus", (left, term))]
            else:
                terms.append(_negative(term) if sign == "-" else term)
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def _product(self) -> Node:
        node = self._signed()
        while True:
            if self._take("*"):
                node = _product(node, self._signed(), "*")
            elif self._take("/"):
                node = Node("quotient", (node, self._signed()))
            elif self._starts_factor():
                node = self._adjacent(node)
            else:
                return node

    def _adjacent(self, left: Node) -> Node:
        """Read what follows without a sign between: a mixed number, or a factor."""
        whole = left.parts[0] if left.kind == "negative" else left
        is_whole = whole.kind == "number" and whole.digits < 0 and whole.value.denominator == 1
        if is_whole and (mixed := self._fraction_after(whole)) is not None:
            return _negative(mixed) if left.kind == "negative" else mixed
        if self._kind() == "number":  # two numbers side by side are no product
            raise Unreadable("numbers side by side")
        return _product(left, self._power(), "")

    def _fraction_after(self, whole: Node) -> Node | None:
        at = self._at
        if self._kind() == "number":
            top = self._power()
            part = Node("quotient", (top, self._power())) if self._take("/") else top
        elif self._peek() == r"\frac":
            part = self._power()
        else:
            return None
        if part.kind == "quotient" and all(p.kind == "number" and p.digits < 0 for p in part.parts):
            above, below = (p.value for p in part.parts)
            if below and above.denominator == below.denominator == 1 and 0 < above < below:
                part_value = above / below
                return number(whole.value + (-part_value if whole.value < 0 else part_value))  # -2 1/2 is -(2 + 1/2)
        self._at = at
        return None

    def _signed(self) -> Node:
        self._enter()
        try:
            if self._take("-"):
                return _negative(self._signed())
            if self._take("+"):
                return self._power()  # +-7 is not written for -7
            return self._power()
        finally:
            self._depth -= 1

    def _power(self) -> Node:
        base = self._postfix(self._atom())
        if not self._take("^"):
            return base
        if self._take(r"\circ"):
            return self._postfix(Node("degrees", (base,)))
        if self._peek() == "{" and self._ahead(1) == r"\circ" and self._ahead(2) == "}":
            self._at += 3
            return self._postfix(Node("degrees", (base,)))
        exponent = self._braced() if self._peek() == "{" else self._signed()
        return self._postfix(_power(base, exponent))

    def _postfix(self, node: Node) -> Node:
        while (sign := self._peek()) == "!" or (sign == "%" and node.kind != "percent"):
            self._next()
            node = Node("factorial" if sign == "!" else "percent", (node,))
        return node

    def _atom(self) -> Node:
        kind, token = self._kind(), self._next()
        if kind == "number":
            return self._number(token)
        name = token.removeprefix("\\")
        if name in ("pi", "e", "i", "infty", "infinity", "inf", "oo"):
            return Node("constant", name=name if name in ("pi", "e", "i") else "inf")
        if name in ("frac", "binom") and token[0] == "\\":
            top = self._argument(digit=True)
            bottom = self._argument(digit=True)
            return Node("quotient", (top, bottom)) if name == "frac" else Node("call", (top, bottom), "binom")
        if name in ("sqrt", "cbrt"):
            return self._root(3 if name == "cbrt" else 2)
        if name.startswith("begin"):
            return self._matrix(token.partition("{")[2])
        if name in FUNCTIONS:
            return self._call(name)
        if kind == "letters" or name in GREEK:
            return Node("variable", name=name + self._subscript())
        if token in _CLOSING:
            return self._bracket(token)
        raise Unreadable(token)

    def _number(self, token: str) -> Node:
        mantissa, _, exponent = token.lower().partition("e")
        digits = len(mantissa.partition(".")[2]) if "." in mantissa.rstrip(".") else -1
        value = Fraction(mantissa.rstrip(".") if mantissa != "." else "x")
        repeats = (digits >= 0 or mantissa.endswith(".")) and self._take(r"\overline", r"\bar", r"\dot")
        if repeats:
            block = self._ahead(1) if self._peek() == "{" and self._ahead(2) == "}" else ""
            if not block.isdigit():
                raise Unreadable("repeating decimal")
            self._at += 3
            return number(value + Fraction(int(block), (10 ** len(block) - 1) * 10 ** max(digits, 0)))
        if exponent:
            return number(value * Fraction(10) ** int(exponent), digits)
        return number(value, digits)

    def _root(self, degree: int) -> Node:
        node = number(degree)
        if self._take("["):
            node = self.sum()
            self._expect("]")
        return Node("root", (self._argument(), node))

    def _call(self, name: str) -> Node:
        parts: tuple[Node, ...] = ()
        if self._take("_"):
            parts = (self._argument(digit=True),)
        exponent = self._argument(digit=True) if self._take("^") else None
        if self._peek() in ("(", "{", "|"):
            inner = self._argument()
        else:  # \sin 2x: factors up to the next sign, function or bracket
            inner = self._power()
            while self._starts_factor() and self._kind() == "letters" and self._peek() not in FUNCTIONS:
                inner = _product(inner, self._power(), "")
        node = Node("call", (inner, *parts), name)
        return node if exponent is None else _power(node, exponent)

    def _argument(self, digit: bool = False) -> Node:
        """A group in braces or parentheses, or the next atom; of an unbraced number `\\frac` takes one digit."""
        if self._peek() == "{":
            return self._braced()
        if digit and self._kind() == "number" and self._peek().isdigit() and len(self._peek()) > 1:
            _, token, _ = self._tokens[self._at]
            self._tokens[self._at] = ("number", token[1:], False)
            return number(int(token[0]))
        if digit or self._kind() == "number":
            return self._atom()
        return self._postfix(self._atom())

    def _braced(self) -> Node:
        self._expect("{")
        self._enter()
        node = self.sum()
        if self._take(r"\over"):
            node = Node("quotient", (node, self.sum()))
        self._depth -= 1
        self._expect("}")
        return node

    def _bracket(self, opening: str) -> Node:
        """Parentheses around one scalar vanish; several items are a tuple, an interval or a set."""
        self._enter()
        if opening in ("{", r"\{") and (such := self._such_that()) is not None:
            return such
        items = [] if self._peek() == _CLOSING[opening] else [self._relation()]
        if opening == "{" and self._take(r"\over"):
            items = [Node("quotient", (items[0], self.sum()))]
        while self._take(",", ";"):
            items.append(self._relation())
        closing = self._next()
        if opening in "[]" and closing == "[":  # ]0, 1[ is (0, 1)
            closing = ")"
        opening = "(" if opening == "]" else opening
        self._depth -= 1
        if opening == "|" and closing == "|" and len(items) == 1:
            return Node("call", tuple(items), "abs")
        if opening in ("{", r"\{"):
            if closing != _CLOSING[opening]:
                raise Unreadable(closing)
            if opening == "{" and len(items) == 1 and items[0].kind != "relation":
                return items[0]
            return Node("set", tuple(items), "{}")
        if opening == "|" or closing not in (")", "]") or not items:
            raise Unreadable(opening)
        if len(items) == 1 and opening == "(" and closing == ")" and items[0].kind != "relation":
            return items[0]
        if len(items) == 1 and items[0].kind == "matrix":  # \left[\begin{array}…\end{array}\right]
            return items[0]
        if len(items) == 1 and opening + closing != "[]":
            raise Unreadable(opening)
        return Node("tuple" if opening + closing == "()" else "interval", tuple(items), opening + closing)

    def _such_that(self) -> Node | None:
        """The condition of {x | 0 < x < 1}, up to its brace; None if this is no such set."""
        at = self._at
        while self._kind() == "letters" or self._peek() in (r"\in", r"\mathbb", "{", "}"):
            self._next()
        if at == self._at or not self._take(":", "|"):
            self._at = at
            return None
        condition = self.answer()
        self._depth -= 1
        if self._next() not in ("}", r"\}") or not condition.find("relation"):
            raise Unreadable("set")
        return condition

    def _matrix(self, environment: str) -> Node:
        if environment not in MATRICES:
            raise Unreadable(environment)
        if environment == "array}":
            self._expect("{")
            self._word()
        rows: list[list[Node]] = [[]]
        while not (end := self._peek()).startswith(r"\end"):
            if self._take(r"\cr"):
                rows.append([])
            elif not self._take("&"):
                rows[-1].append(self.sum())
        self._next()
        if not end.endswith("{" + environment):
            raise Unreadable(end)
        return Node("matrix", tuple(Node("tuple", tuple(row), "()") for row in rows if row))

    def _word(self) -> str:
        """Join the tokens up to the closing brace."""
        word = ""
        while (token := self._next()) != "}":
            word += token
        return word

    def _subscript(self) -> str:
        if not self._take("_"):
            return ""
        if self._take("{"):
            return "_" + self._word()
        return "_" + self._next()

    def _starts_factor(self) -> bool:
        token = self._peek()
        if self._kind() == "number" or token in ("(", r"\{"):
            return True
        if self._kind() == "letters":
            return token not in ("and", "or", "U")
        name = token.removeprefix("\\")
        return token[:1] == "\\" and (name in (*FUNCTIONS, *GREEK, "pi", "infty", "frac", "e", "i"))

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("too deep")

    def _kind(self) -> str:
        return self._tokens[self._at][0] if not self.done else ""

    def _peek(self) -> str:
        return self._tokens[self._at][1] if not self.done else ""

    def _ahead(self, by: int) -> str:
        return self._tokens[self._at + by][1] if self._at + by < len(self._tokens) else ""

    def _next(self) -> str:
        if self.done:
            raise Unreadable("end")
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _take(self, *tokens: str) -> str:
        if self._peek() in tokens and not self.done:
            return self._next()
        return ""

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise Unreadable(token)


def _negative(node: Node) -> Node:
    return replace(node, value=-node.value) if node.kind == "number" else Node("negative", (node,))


def _product(left: Node, right: Node, sign: str) -> Node:
    if not (left.scalar or left.kind == "matrix") or not right.scalar:
        raise Unreadable("product of what has no product")
    parts = left.parts if left.kind == "product" and left.name == sign else (left,)
    return Node("product", (*parts, right), sign)


def _power(base: Node, exponent: Node) -> Node:
    """Return the power; one of ten by a whole exponent is a number that is written out."""
    if base == number(10) and exponent.kind == "number" and exponent.value.denominator == 1:
        if abs(exponent.value) > MAX_POWER_OF_TEN:
            raise Unreadable("too large")
        return Node("number", value=Fraction(10) ** int(exponent.value), name="10^")
    return Node("power", (base, exponent))
