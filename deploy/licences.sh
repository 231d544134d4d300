#!/usr/bin/env bash
# Checks the dependencies against deploy/deny.toml: licences, banned crates, sources. Uses cargo-deny where it is
# installed; elsewhere it reads the same file itself, with nothing but cargo and awk, and without a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
config=deploy/deny.toml

if command -v cargo-deny >/dev/null 2>&1; then
    exec cargo deny --config "$config" check licenses bans sources
fi

# Banned crates and foreign sources: Cargo.lock names every crate of every platform and feature.
awk '
    FILENAME ~ /deny\.toml$/ {
        if (match($0, /crate = "[^"]+"/)) banned[substr($0, RSTART + 9, RLENGTH - 10)] = 1
        next
    }
    /^name = /   { name = $3; gsub(/"/, "", name); if (name in banned) { bad = 1; print "error: " name " is banned by deploy/deny.toml" } }
    /^source = / && $3 != "\"registry+https://github.com/rust-lang/crates.io-index\"" {
        bad = 1; print "error: " name " does not come from crates.io: " $3
    }
    END { exit bad }
' "$config" Cargo.lock >&2

# Licences of everything that is built here. An expression is decided by writing 1 for each allowed licence and 0 for
# each other one, and then reducing AND before OR, innermost parentheses first.
tree="$(cargo tree --locked --edges normal,build,dev --prefix none --no-dedupe --format '{p}|{l}')"
printf '%s\n' "$tree" | sort -u | awk -F '|' '
    FILENAME ~ /deny\.toml$/ {
        if ($0 ~ /^allow = \[/) inside = 1
        else if ($0 ~ /^\]/) inside = 0
        else if (inside && match($0, /"[^"]+"/)) allowed[substr($0, RSTART + 1, RLENGTH - 2)] = 1
        next
    }
    function flat(s) {
        while (s ~ / AND /) {
            if (sub(/1 AND 1/, "1", s)) continue
            if (!sub(/[01] AND [01]/, "0", s)) return 0
        }
        return s ~ /^[01]( OR [01])*$/ && s ~ /1/
    }
    NF {
        checked++
        text = $2; gsub(/ *\/ */, " OR ", text)
        gsub(/\(/, " ( ", text); gsub(/\)/, " ) ", text); gsub(/ WITH /, "~WITH~", text)
        n = split(text, word, " "); s = ""
        for (i = 1; i <= n; i++) {
            w = word[i]; gsub(/~/, " ", w)
            if (w !~ /^(AND|OR|\(|\))$/) w = (w in allowed) ? 1 : 0
            s = s (i > 1 ? " " : "") w
        }
        while (match(s, /\( [^()]* \)/))
            s = substr(s, 1, RSTART - 1) flat(substr(s, RSTART + 2, RLENGTH - 4)) substr(s, RSTART + RLENGTH)
        if (!flat(s)) { bad = 1; print "error: the licence of " $1 " is not allowed: " ($2 == "" ? "none stated" : $2) }
    }
    END {
        if (!checked) { print "error: no dependencies were listed"; exit 1 }
        if (!bad) print "licences, bans and sources: " checked " crates are fine"
        exit bad
    }
' "$config" - >&2
