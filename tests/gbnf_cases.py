"""Grammars in GBNF and texts, for tools/make_gbnf_fixtures.py and test_gbnf.py. The first four are those of
llama.cpp (MIT licence): arithmetic.gbnf, json.gbnf, chess.gbnf and most of c.gbnf.
"""

from __future__ import annotations

ARITHMETIC = r"""root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
JSON = r"""root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
CHESS = r"""# Force first move to "1. ", then any 1-2 digit number after
root    ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move    ::= (pawn | nonpawn | castle) [+#]?

# piece type, optional file/rank, optional capture, dest file & rank
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]

# optional file & capture, dest file & rank, optional promotion
pawn    ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?

castle  ::= "O-O" "-O"?
"""
C = r"""root ::= (declaration)*

declaration ::= dataType identifier "(" parameter? ")" "{" statement* "}"

dataType  ::= "int" ws | "float" ws | "char" ws
identifier ::= [a-zA-Z_] [a-zA-Z_0-9]*

parameter ::= dataType identifier

statement ::=
    ( dataType identifier ws "=" ws expression ";" ) |
    ( identifier ws "=" ws expression ";" ) |
    ( identifier ws "(" argList? ")" ";" ) |
    ( "return" ws expression ";" ) |
    ( "while" "(" condition ")" "{" statement* "}" ) |
    ( "if" "(" condition ")" "{" statement* "}" ("else" "{" statement* "}")? ) |
    ( singleLineComment ) |
    ( multiLineComment )

condition ::= expression relationOperator expression
relationOperator ::= ("<=" | "<" | "==" | "!=" | ">=" | ">")

expression ::= term (("+" | "-") term)*
term ::= factor(("*" | "/") factor)*

factor ::= identifier | number | unaryTerm | funcCall | parenExpression
unaryTerm ::= "-" factor
funcCall ::= identifier "(" argList? ")"
parenExpression ::= "(" ws expression ws ")"

argList ::= expression ("," ws expression)*

number ::= [0-9]+

singleLineComment ::= "//" [^\n]* "\n"
multiLineComment ::= "/*" ( [^*] | ("*" [^/]) )* "*/"

ws ::= ([ \t\n]+)
"""
CASES: list[tuple[str, list[str]]] = [
    (ARITHMETIC, ["a=b\n", "a=b\nc=d\n", "(a+1)*2=7\n", "a = b \n", "a=\n", "a=b\n\n", "1a=2\n", "(a=b\n"]),
    (
        JSON,
        ['{"a": 1}', '{"a":[1,2.5e1,"x\\n é"],"b":{}}', '{"a": true, "b":null}', '{"a":01}', '{"a":"\\x"}'],
    ),
    (CHESS, ["1. e4 e5\n2. Nf3 Nc6\n", "1. d4 d5\n2. c4 dxc4\n3. e3 O-O+\n", "1. e4 e5\n", "1. e9 e5\n"]),
    (C, ["int main(){int x = 1;}", "int f(int a){return a+1;}", "int f(){// hi\n}", "int f(){intx = 1;}"]),
    (C, ["int f(){if(a<b){x = 1;}else{y = 2;}}", "int f(){/* a * b **/}", "int f(){ }", "intf(){}"]),
    (C, ["int f(){while(a<=-b*(\n2 )){returns = 1;}}", "int f(){return 1;}", "int f(){if = 1;}", ""]),
    (
        'root ::= reason " Answer: " ("yes" | "no")\nreason ::= [a-zA-Z ,.]+',
        ["it is. Answer: yes", "a Answer: "],
    ),
    ('root ::= [a-z]+ "ing"', ["sing", "singing", "ing", "singingly"]),
    ('root ::= [a-z]+ "s"?', ["cats", "s"]),
    (
        'root ::= w (" " w)* " end"\nw ::= [a-z]+',
        ["a b end", "a end end", "a b", "a end ends end", "a end end "],
    ),
    (
        'root ::= "```" [a-z]* "\\n" code "\\n```"\ncode ::= [^`]+',
        ["```py\nx\n```", "```\n\n\n```", "```\n\n```"],
    ),
    ('root ::= item ("," item)*\nitem ::= [a-z ]+ | "none"', ["a,none", "none", "nonex", "a,,b"]),
    ('root ::= "yes" | "yesterday" | name\nname ::= [a-z]+', ["yes", "yesterday", "yess", "y", "yes1"]),
    ('root ::= "<" .* ">"', ["<a>", "<a\nb>", "<a>b>", "<", "<>", "<é>>"]),
    ("root ::= .", ["\n", "é", "😀", "", "ab"]),
    ("root ::= [a-c--z]+", ["b-", "-z", "z", "+", "c"]),
    ("root ::= [a~~b]+", ["a~b", "~", "c"]),
    ("root ::= [a&&b~]+", ["a&&", "b~", "c"]),
    ("root ::= [[a]+", ["[a", "]"]),
    ('root ::= [^^a] "x"', ["bx", "^x", "ax"]),
    ("root ::= [+-]? [0-9]", ["-1", "+1", "1", ",1"]),
    ('root ::= [.*+?(){}|^$]+ "/" [/]', [".*+//", "^$//", "a//"]),
    ('root ::= "a.b*c+d?(e)[f]{2}|^$"', ["a.b*c+d?(e)[f]{2}|^$", "aab"]),
    ('root ::= "\\u00e9" "\\x41" "\\U0001F600" "\\xe9"', ["éA😀é", "e"]),
    ("root ::= [\\u0041-\\u005A]+", ["AZ", "a"]),
    ("root ::= [\\U0001F600-\\U0001F64F]+", ["😀🙏", "🚀"]),
    ("root ::= [а-я]+ [^é]", ["дал", "даé", "д"]),
    ('root ::= [а-п]+ "р"', ["ар", "аа", "арр"]),
    ('root ::= "\\"" "\\\\" [\\"\\\\\\]\\[^-]', ['"\\]', '"\\-', '"\\"', '"\\a']),
    ('root ::= start\nstart ::= "a"', ["a", "b"]),
    ('root ::= foo FOO\nfoo ::= "a"\nFOO ::= "b"', ["ab", "aa"]),
    ('root ::= a-b a1b\na-b ::= "a"\na1b ::= "b"', ["ab", "ba"]),
    ('root ::= ("a"*)+ "b"', ["aab", "b", "a"]),
    ('root ::= ("a"?)* "b"', ["aab", "b", "a"]),
    ('root ::= "a"{0} "b"', ["b", "ab"]),
    ('root ::= ("ab" | "c"){2} "d"{1,} "e"{0,2}', ["abcd", "ccdde", "cdee", "ccdeee"]),
    ('root ::= "a\nb" [\n]', ["a\nb\n", "ab\n"]),
    ('root ::= "a" ( | "b")', ["a", "ab", "abb"]),
    ('root ::= "a" x\nx ::= | "b"', ["a", "ab", "b"]),
    ('root ::= "b" root | "a"', ["bba", "a", "bb"]),
    ('root ::= a\na ::= "x" b?\nb ::= "y" a?', ["xyxy", "x", "y", "xx"]),
    ('root ::= "a" root "a" | "b"', ["aabaa", "b", "aaba"]),
    ('root ::= "a" root? "b"', ["aabb", "ab", "aab"]),
    (
        'root ::= "(" root ")" | [a-z]+ "s" | "x" "(" root ")"',
        ["(cats)", "(ss)", "x(as)", "(s)", "xs", "xs("],
    ),
    (
        'root ::= "<" t* ">"\nt ::= "<" t* ">" | [^<>]+ "!" | "if" | [a-z]',
        ["<if!a>", "<<if>a!b!>", "<é>", "<iff>"],
    ),
    (
        'root ::= x " " x\nx ::= "[" x* "]" | [a-z]+ | [0-9]+ "."?',
        ["[ab1.] c", "[1.2] 3.", "[1..] 3", "a b c"],
    ),
    ('root ::= "é"+ x | "b"\nx ::= "è" root "(" | "c"', ["éc", "ééèb(", "éèéc(", "éè"]),  # one first byte
    ('root ::= (line "\\n")+\nline ::= [a-z]+ ws\nws ::= [ \\t\\n]*', ["ab\n", "a \n\n", "a", "a\n\nb\n"]),
    ('root ::= [0-9]+ ("." [0-9]+)? "." ', ["1.", "1.5.", "1.5"]),
    ('root ::= "\\"" char* "\\""\nchar ::= [^"\\\\] | "\\\\" .', ['"a\\"b"', '"a\\"', '"\\\n"']),
    ('root ::= "<a>" text "</a>"\ntext ::= [^<]+ | "<" [^/] ', ["<a>x</a>", "<a><b</a>", "<a></a>"]),
    ('root ::= ["\'] [^"\']* ["\'] # it\'s "b"\n', ["\"a'", "''", '"']),
    ('# x: ::= y\nroot ::= "#" [a-z]+ # c\r\n\r\nunused ::= "x"', ["#ab", "#"]),
    ('root ::= ( # one\n  "a" |\n\n  # two\n  "b" )\n', ["a", "b"]),
    ('root ::= "a"\nroot ::= "b"', ["a", "b"]),
]
# Refused by llama.cpp.
INVALID = [
    "garbage",
    'roots ::= "a"',
    "root ::= nothing",
    'root ::= "a',
    "root ::= [a",
    'root ::= ("a"',
    'root ::= "a")',
    "root ::= *",
    'root ::= "\\q"',
    'root ::= "\\x4"',
    'root ::= "a"{',
    'root ::= "a"{x}',
    'root ::= "a"{2',
    'root = "a"',
    'root ::= "a" % "b"',
]
