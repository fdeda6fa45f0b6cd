# Steps with their times, for .ci/run and ci/full.sh, which source this file.
#
# XENT_CI_SKIP names steps to leave out, separated by commas. They are listed where they would have run and once more
# at the end, so that nobody takes the run for a complete one.

# What XENT_CI_SKIP may name, in either script.
optional_steps="aarch64 fuzz c mpi perplexity"

skip=${XENT_CI_SKIP:-}
skip=${skip// /,}
for name in ${skip//,/ }; do
    case " $optional_steps " in
    *" $name "*) ;;
    *)
        echo "$0: XENT_CI_SKIP has '$name', but what can be skipped is: $optional_steps" >&2
        exit 1
        ;;
    esac
done

if command -v rustup >/dev/null; then
    rustup component add rustfmt clippy >/dev/null 2>&1 || true
fi

table=$(mktemp)
times_file=$(mktemp)
skipped=

# The CPU time that all finished children have taken, in seconds, from the output of `times`. That has to run in the
# shell whose children are meant, so not here, in a substitution.
cpu_of_file() {
    awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, t, /[ms]/); sum += 60 * t[1] + t[2] } print int(sum + 0.5) }' "$times_file"
}

# Runs a command, and notes how long it took.
step() {
    printf '\n== %s\n' "$*"
    local wall=$SECONDS cpu
    times >"$times_file"
    cpu=$(cpu_of_file)
    "$@"
    times >"$times_file"
    cpu=$(($(cpu_of_file) - cpu))
    wall=$((SECONDS - wall))
    printf '== %d s, of CPU time %d s\n' "$wall" "$cpu"
    printf '%6d %6d  %s\n' "$wall" "$cpu" "$*" >>"$table"
}

# A command that README.md tells people to run.
readme_step() {
    grep -qF "$*" README.md || {
        echo "$0: README.md no longer has '$*'" >&2
        exit 1
    }
    step "$@"
}

is_skipped() { [[ ",$skip," == *",$1,"* ]]; }

# A step that can be skipped, by its name.
optional() {
    local name=$1
    shift
    if is_skipped "$name"; then
        skipped+=" $name"
        printf '\n== SKIPPED, as XENT_CI_SKIP says: %s\n' "$*"
    else
        step "$@"
    fi
}

finish() {
    if [ -s "$table" ]; then
        printf '\n  wall    CPU  step (seconds)\n'
        cat "$table"
        awk '{ wall += $1; cpu += $2 } END { printf "%6d %6d  in all\n", wall, cpu }' "$table"
    fi
    rm -f "$table" "$times_file"
    [ -z "$skipped" ] || printf '\n== NOT CHECKED, as XENT_CI_SKIP says:%s\n' "$skipped"
}
trap finish EXIT
