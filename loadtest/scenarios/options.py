"""Options that every scenario has on Locust's command line, each also an environment variable, LOCUST_ and its name."""

import locust.argument_parser

OPTIONS: tuple[tuple[str, type, int | float | str, str], ...] = (
    ("clients", int, 20, "Clients at the height of the scenario; each sends when it was answered."),
    ("scenario-seconds", float, 60.0, "Length of the scenario."),
    ("num-users-space", int, 200, "Distinct users with a history."),
    ("zipf", float, 1.1, "The user of rank r is drawn with weight r^-zipf; 0 is uniform."),
    ("history", int, 200, "Events of each user before the scenario."),
    ("candidates", int, 500, "Candidates of a rank, at most what the server takes."),
    ("num-items", int, 1_682, "Item ids are drawn from 1 to this."),
    ("deadline-ms", int, 2_000, "Deadline of each request."),
    ("load-seed", int, 0, "Seed of users, items and events."),
    ("summary-file", str, "", "Write the figures here, as JSON."),
)


def add_options(parser: locust.argument_parser.LocustArgumentParser) -> None:
    """A listener of Locust's `init_command_line_parser`."""
    group = parser.add_argument_group("mfalcon")
    for name, kind, default, text in OPTIONS:
        group.add_argument(
            f"--{name}", type=kind, default=default, env_var=f"LOCUST_{name.upper().replace('-', '_')}", help=text
        )
