#!/usr/bin/env bash
# Puts every store and set-up that can be started here to the suite, and renews the two places that show
# what came of it: docs/matrix.md has all, README.md the stores as one runs them first. Some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

# The columns of README.md.
shown='memory|etcd|etcd, three members|redis|postgres'

[ $# = 0 ] || { echo "scripts/matrix.sh takes no arguments: it shows all or nothing" >&2; exit 2; }
cargo run --quiet --package tenure-cli --all-features --locked -- \
    conform --format markdown --out docs/matrix.md

# The first table of the page, only these columns.
trimmed() {
    awk -v shown="^($shown)\$" -F ' *[|] *' '
        /^\|/ && !past {
            if (!seen) for (i = 3; i < NF; i++) keep[i] = $i ~ shown
            seen = 1
            line = "| " $2 " |"
            for (i = 3; i < NF; i++) if (keep[i]) line = line " " $i " |"
            print line
        }
        !/^\|/ && seen { past = 1 }
    ' docs/matrix.md
}

table=$(trimmed)
[ -n "$table" ]
table=$table awk '
    /<!-- end of the matrix -->/ { inside = 0 }
    !inside { print }
    /<!-- matrix -->/ { print "\n" ENVIRON["table"] "\n"; inside = 1 }
' README.md >README.md.new
mv README.md.new README.md
