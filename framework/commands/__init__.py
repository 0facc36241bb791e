"""What the `framework` command does, a function a command: arguments in, exit code out."""

COMMANDS = (
    *("plan", "run", "submit", "keys", "report", "lineage", "sample", "score", "check"),
    *("chat", "serve", "push", "bench", "completion"),
)
