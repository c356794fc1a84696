"""The commands and their options.

Comes in: arguments. Goes out: an exit code. The modules that do the work are imported when their
command runs, so that `--help` is quick.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from jaxstate import __version__
from jaxstate.cli.show import Show
from jaxstate.cli.signals import Ended, ended_by_signals
from jaxstate.errors import InvalidInput, JaxstateError
from jaxstate.weights.known import EMBEDDED

DTypeOption = Literal["float32", "bfloat16", "float16"]
DurabilityOption = Literal["memory", "os", "fsync"]
PolicyOption = Literal["block", "reject", "drop_oldest"]
FormatOption = Literal["auto", "lines", "jsonl", "csv", "syslog"]
LogOption = Literal["text", "json", "off"]

app = typer.Typer(
    help=(
        "Read a stream once into a language model's session; ask about it at the cost of the "
        "question, however long the stream has become."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A Hugging Face directory, a .gguf file, or a name (streams-20m, smollm2-135m, "
        "gemma3-270m).",
        show_default="the one of a saved session or journal; else streams-20m, which comes with "
        "jaxstate",
    ),
]
Cells = Annotated[
    int | None,
    typer.Option(
        "--cells",
        min=1,
        help="Capacity of each session in tokens.",
        show_default="what the model was made for, as far as half of the memory goes",
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of an answer at most.")]
DType = Annotated[
    DTypeOption | None,
    typer.Option(
        "--dtype",
        help="Of parameters and cells.",
        show_default="float32 on a CPU, bfloat16 elsewhere",
    ),
]
Steps = Annotated[
    Path | None,
    typer.Option("--steps", help="Step sizes to compile, as TOML (see configs/ in the source)."),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="FIELD",
        help="An unknown field of the model's config that changes nothing of what is computed, as "
        "you know; may be given several times.",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="plain|FILE",
        help="Instead of the model's own chat template: questions and answers in plain text, or a "
        "file with another one (Jinja).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")]


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"jaxstate {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Show it, and exit."),
    ] = False,
) -> None:
    """Options without a command."""


@app.command()
def stream(
    source: Annotated[
        list[str] | None, typer.Argument(metavar="FILE|-", help="A text file, or - for a pipe.")
    ] = None,
    session: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Instead of FILE, once for each session: its name, and the file or pipe that is "
            "read into it (- for one of them). All are read at the same time.",
        ),
    ] = None,
    model: Model = None,
    prefix: Annotated[
        Path | None, typer.Option(help="A text file that every session starts with.")
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option(help="A question to every session; may be given several times."),
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Ask after every so many lines, not only at the end.")
    ] = None,
    max_tokens: MaxTokens = 32,
    flash: Annotated[
        list[str] | None,
        typer.Option(
            help="A question that is kept answered, in every session, while lines come in; may be "
            "given several times."
        ),
    ] = None,
    flash_max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a flash answer at most.")
    ] = 16,
    choices: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…", help="The only answers that --flash questions may have, scored whole."
        ),
    ] = None,
    when: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Which flash answers are news: changed, equals=TEXT, crosses=NUMBER, "
            "rises-above=NUMBER, falls-below=NUMBER, confidence=NUMBER.",
            show_default="each that differs from the one before",
        ),
    ] = None,
    exec_: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run it for each flash answer that is news; it gets the answer as JSON on its "
            "standard input.",
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Post each flash answer that is news there, as JSON."),
    ] = None,
    policy: Annotated[
        PolicyOption,
        typer.Option(
            help="When --queue lines wait: take no more for now, stop with an error, or drop the "
            "oldest of them (which ones is said)."
        ),
    ] = "block",
    queue: Annotated[
        int, typer.Option(min=2, help="Lines of a session that may wait to be read.")
    ] = 64,
    window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="4096t|500e|10m|key=REGEX",
            help="For a stream that does not end: what stays in a session's context behind its "
            "prefix: the newest tokens, lines, those of a time (s, m, h, d), or the newest of each "
            "key; may be given several times, and all hold.",
        ),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(
            help="By how much of --window the context may exceed it, above 0, at most 1; chosen "
            "by how busy the device is unless given."
        ),
    ] = None,
    slide: Annotated[
        bool,
        typer.Option(
            "--slide",
            help="Drop what leaves --window at once, and compute nothing anew: cheap, and "
            "approximate.",
        ),
    ] = False,
    cells: Cells = None,
    dtype: DType = None,
    ignore: Ignore = None,
    template: Template = None,
    steps: Steps = None,
    load: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the session that was saved there; with --session, with those that "
            "were saved there under their names."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Save the session there at its end, on an error, and on Ctrl-C; with --session, "
            "each under its name in that directory."
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Keep the sessions in this directory as they are read: whatever ends this command "
            "(also kill -9), the same command goes on where it was, and reads each line of a file "
            "once. Needs --session NAME=FILE.",
        ),
    ] = None,
    durability: Annotated[
        DurabilityOption,
        typer.Option(
            help="With --journal: what a line outlives before the next is taken: nothing, the end "
            "of this process (os), a power failure (fsync)."
        ),
    ] = "os",
    replace_invalid: Annotated[
        bool, typer.Option("--replace-invalid", help="Read bytes that are no text as U+FFFD.")
    ] = False,
    encoding: Annotated[str, typer.Option(help="Of the text; gz, bz2, xz and zst are read.")] = (
        "utf-8"
    ),
    format: Annotated[
        FormatOption,
        typer.Option(
            help="Of lines: as they are; objects of JSON; a table, whose first line names the "
            "columns; logs, shortened; or what the first line looks like."
        ),
    ] = "lines",
    fields: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE", help="Of JSON's objects, such as '{time} {user.name}: {message}'."
        ),
    ] = None,
    grep: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Take only entries in which this is found."),
    ] = None,
    max_line: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="A longer line is an error.")
    ] = 1 << 20,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Go on when a file has come to its end, as tail -F: through rotation by name and "
            "by copy and truncate, until Ctrl-C or SIGTERM.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read documents or pipes into sessions, line by line, and ask about them.

    Every line is an entry; version 17 has seen lines 1 to 17. --flash questions
    are answered in idle time, and once more at the end; --ask questions when it
    is their turn. Sessions (--session) go on side by side and share one engine:
    none waits for the input of another, and each ends when its own input does.

    Exit code 0: all was read, answered and saved. 1: something could not be
    done; the message says what, the other sessions go on, what was asked is
    answered as far as was read, and that is saved if --save was given. 130:
    Ctrl-C, likewise; 143: SIGTERM; 129: SIGHUP.

    Examples:

    jaxstate stream feed.log --follow -m gemma3-270m --flash "What failed?"

    jaxstate stream -m gemma3-270m --session web=web.log --session db=db.log

    jaxstate stream -m gemma3-270m --journal kept --session web=web.log
    """
    from jaxstate.cli.actions import action_of, checked_choices, condition_of
    from jaxstate.cli.inputs import reading_of
    from jaxstate.cli.stream import StreamOptions, run_stream
    from jaxstate.cli.streaming import Plan
    from jaxstate.engine.types.window import Window

    show = Show(as_json=as_json)
    plan = Plan(
        questions=tuple(ask or ()),
        every=every,
        max_tokens=max_tokens,
        flash=tuple(flash or ()),
        flash_max_tokens=flash_max_tokens,
        reading=reading_of(replace_invalid, follow, encoding, format, fields, grep, max_line),
        choices=checked_choices(choices),
        when=condition_of(when),
        act=action_of(show, exec_, webhook),
    )
    if (plan.choices or plan.when or plan.act) and not plan.flash:
        raise InvalidInput("--choices, --when, --exec, --webhook are of --flash questions: add one")
    if (hop is not None or slide) and not window:
        raise InvalidInput("--hop and --slide say how a --window moves: add --window")
    if source and len(source) > 1:
        named = " ".join(f"--session {Path(one).stem}={one}" for one in source)
        raise InvalidInput(f"several files, each into a session of its own: {named}")
    options = StreamOptions(
        source=source[0] if source else None,
        sessions=tuple(session or ()),
        model=model,
        prefix=prefix,
        policy=policy,
        queue=queue,
        window=(Window.parse(window, hop, "slide" if slide else "exact") if window else None),
        cells=cells,
        dtype=dtype,
        ignore=tuple(ignore or ()),
        template=template,
        steps=steps,
        load=load,
        save=save,
        journal=journal,
        durability=durability,
        plan=plan,
    )
    raise typer.Exit(run_stream(show, options))


@app.command()
def ask(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SAVED|URL",
            help="What `jaxstate stream --save` wrote, the directory of --journal, or the address "
            "of a running server (http://…).",
        ),
    ],
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="One or several questions.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Where the model lies now.", show_default="as saved"),
    ] = None,
    session: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Of a journal's, or a server's, sessions, this one; several times."
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="JAXSTATE_API_KEY", help="The key that a server wants."),
    ] = None,
    max_tokens: MaxTokens = 32,
    cells: Cells = None,
    dtype: DType = None,
    ignore: Ignore = None,
    template: Template = None,
    steps: Steps = None,
    as_json: AsJson = False,
) -> None:
    """Ask a saved session, all sessions of a journal, or one of a running server.

    A saved session stays as it is; it must have been saved with the same model, tokenizer and
    dtype. A journal must not be in use; what its sessions had not read yet is read first.
    """
    from jaxstate.cli.ask import AskOptions, run_ask

    if source.startswith(("http://", "https://")):
        from jaxstate.cli.extras import needs_extra

        with needs_extra("serve"):
            from jaxstate.cli.push import run_ask_server

        code = run_ask_server(
            Show(as_json=as_json), source, session or [], questions, api_key, max_tokens
        )
        raise typer.Exit(code)
    options = AskOptions(
        source=Path(source),
        sessions=tuple(session or ()),
        questions=tuple(questions),
        model=model,
        max_tokens=max_tokens,
        cells=cells,
        dtype=dtype,
        ignore=tuple(ignore or ()),
        template=template,
        steps=steps,
    )
    raise typer.Exit(run_ask(Show(as_json=as_json), options))


@app.command()
def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="JAXSTATE_API_KEY",
            help="The key that every request has to show; none is needed without it.",
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="Tenants with their keys, shares and quotas, as TOML (docs/server.md)."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Let everybody in without a key, from other machines too."),
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Keep everything that was acknowledged in this directory: a server that is "
            "started on it again has all its sessions."
        ),
    ] = None,
    durability: Annotated[
        DurabilityOption,
        typer.Option(
            help="With --journal: what an acknowledged push outlives: nothing, the end of this "
            "process (os), a power failure (fsync)."
        ),
    ] = "os",
    cells: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the pool that all sessions share, in tokens.", show_default="65536"
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            help="Instead of --cells: the share of the device's memory for the pool, 0 to 1."
        ),
    ] = None,
    session_cells: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each session at most.",
            show_default="all of the pool, or what the model was made for",
        ),
    ] = None,
    sessions: Annotated[
        int, typer.Option(min=1, help="On the device at once; others wait on the host.")
    ] = 64,
    most_sessions: Annotated[int, typer.Option(min=1, help="Of each tenant, open at once.")] = 256,
    connections: Annotated[int, typer.Option(min=1, help="At once.")] = 1024,
    body_bytes: Annotated[int, typer.Option(min=1, help="Of a request at most.")] = 16 << 20,
    body_timeout: Annotated[
        float, typer.Option(help="Seconds for a request to arrive, but for lines that are pushed.")
    ] = 30.0,
    ask_timeout: Annotated[float, typer.Option(help="Seconds for an answer at most.")] = 600.0,
    push_timeout: Annotated[
        float, typer.Option(help="Seconds that a push waits for room in a full queue.")
    ] = 30.0,
    close_timeout: Annotated[
        float, typer.Option(help="Seconds for answers under way when the server is to end.")
    ] = 30.0,
    webhook_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Answers of flash questions may be sent there; several times.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Pages of that origin may use the server (https://example.com); several times.",
        ),
    ] = None,
    log: Annotated[
        LogOption,
        typer.Option(help="Of requests, on standard error, without anybody's text."),
    ] = "text",
    dtype: DType = None,
    ignore: Ignore = None,
    template: Template = None,
    steps: Steps = None,
) -> None:
    """Serve sessions over HTTP, with a page to watch them.

    Clients of layerscale, OpenAI and Anthropic work as they are; /openapi.json
    describes every route, and / is the page. Ends with exit code 0 on SIGTERM
    and Ctrl-C: answers under way are given, and a journal gets a last snapshot.

    Examples:

    jaxstate serve -m gemma3-270m --journal kept

    jaxstate serve --host 0.0.0.0 --keys keys.toml --journal kept
    """
    from jaxstate.cli.extras import needs_extra

    with needs_extra("serve"):
        from jaxstate.cli.serve import ServeOptions, run_serve
        from jaxstate.serve.settings import ServeSettings

    options = ServeOptions(
        model=model,
        dtype=dtype,
        ignore=tuple(ignore or ()),
        template=template,
        steps=steps,
        cells=cells,
        memory=memory,
        session_cells=session_cells,
        sessions=sessions,
        journal=journal,
        durability=durability,
        api_key=api_key,
        keys=keys,
        settings=ServeSettings(
            host=host,
            port=port,
            body_bytes=body_bytes,
            body_s=body_timeout,
            push_s=push_timeout,
            ask_s=ask_timeout,
            close_s=close_timeout,
            connections=connections,
            sessions=most_sessions,
            webhook_hosts=tuple(webhook_host or ()),
            cors_origins=tuple(cors or ()),
        ),
        insecure=insecure,
        log=log,
    )
    code = run_serve(Show(as_json=False), options)
    raise typer.Exit(code)


Url = Annotated[str, typer.Argument(metavar="URL", help="Of the server: http://host:8080.")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", envvar="JAXSTATE_API_KEY", help="The key that the server wants."),
]
Patience = Annotated[
    float,
    typer.Option("--patience", help="Seconds for which a server that does not answer is tried."),
]


@app.command()
def push(
    url: Url,
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Opened if it is not there.")],
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="A text file, or - for a pipe.")],
    api_key: Key = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="4096t|500e|10m", help="Of a session that is opened, as for `stream`."
        ),
    ] = None,
    flash: Annotated[
        list[str] | None, typer.Option(help="A question that is kept answered; several times.")
    ] = None,
    patience: Patience = 600.0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on when a file has come to its end, as tail -F.")
    ] = False,
    replace_invalid: Annotated[
        bool, typer.Option("--replace-invalid", help="Read bytes that are no text as U+FFFD.")
    ] = False,
    encoding: Annotated[str, typer.Option(help="Of the text.")] = "utf-8",
    format: Annotated[FormatOption, typer.Option(help="Of lines, as for `stream`.")] = "lines",
    fields: Annotated[str | None, typer.Option(metavar="TEMPLATE", help="Likewise.")] = None,
    grep: Annotated[str | None, typer.Option(metavar="REGEX", help="Likewise.")] = None,
    max_line: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Likewise.")] = 1 << 20,
    as_json: AsJson = False,
) -> None:
    """Push a document or a pipe into a session of a running server, line by line.

    Lines are numbered: a file that is pushed again goes on where the server has it, and
    whatever is lost on the way is sent again, and counts once. Exit code 0 once
    all of it is acknowledged and read.

    Example:

    tail -F app.log | jaxstate push http://127.0.0.1:8080 app -
    """
    from jaxstate.cli.extras import needs_extra
    from jaxstate.cli.inputs import reading_of
    from jaxstate.engine.types.window import Window

    with needs_extra("serve"):
        from jaxstate.cli.push import PushOptions, run_push

    reading = reading_of(replace_invalid, follow, encoding, format, fields, grep, max_line)
    options = PushOptions(
        url=url,
        session=session,
        source=source,
        key=api_key,
        window=dict(Window.parse(window).as_dict()) if window else None,
        flash=tuple(flash or ()),
        patience_s=patience,
        reading=reading,
    )
    raise typer.Exit(run_push(Show(as_json=as_json), options))


@app.command()
def attach(
    url: Url,
    session: Annotated[str, typer.Argument(metavar="SESSION")],
    api_key: Key = None,
    patience: Patience = 600.0,
    as_json: AsJson = False,
) -> None:
    """Watch a session of a running server: its flash answers as they change.

    Goes on through restarts of the server, until the session is closed or Ctrl-C.
    """
    from jaxstate.cli.extras import needs_extra

    with needs_extra("serve"):
        from jaxstate.cli.push import run_attach

    raise typer.Exit(run_attach(Show(as_json=as_json), url, session, api_key, patience))


@app.command()
def inspect(
    source: Annotated[
        str,
        typer.Argument(
            help="A model (path or name), a saved session, a journal, or an exported session."
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Of a journal: read every entry, compute the cells of every snapshot again, and "
            "compare.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="For --verify.", show_default="as the journal says"),
    ] = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model, a saved session or a journal is, without loading it.

    Nothing is changed, and an engine may be using the journal meanwhile. Exit
    code 1 if something is wrong with a session; the last column says what.
    """
    from jaxstate.cli.inspect import run_inspect
    from jaxstate.cli.inspect_journal import Audit

    audit = Audit(model=model, dtype=dtype) if verify else None
    raise typer.Exit(run_inspect(Show(as_json=as_json), source, audit))


@app.command()
def demo(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Another model.",
            show_default="streams-20m; gemma3-270m with --text",
        ),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="A document instead of prices.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stream real prices into the embedded model, with its answers beside the truth.

    Daily prices of three companies (extra 'demo') come in day by day, and flash queries about them
    are kept answered. With --text a document is streamed (9,185 words, public domain: the
    Declaration of Independence, the Constitution of the United States with its amendments, the
    Gettysburg Address), into a model that can read prose (extra 'gemma'). Both compare what an
    answer costs with reading everything again.
    """
    from jaxstate.cli import demo_prices, demo_text

    show = Show(as_json=as_json)
    if text:
        raise typer.Exit(demo_text.run_demo(show, model or "gemma3-270m"))
    raise typer.Exit(demo_prices.run_demo(show, model or EMBEDDED))


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="What to train, as TOML (see configs/train in the source).")
    ],
    into: Annotated[
        Path,
        typer.Option(
            help="The run's directory: the model, its checkpoints, its log. A run that is there "
            "already goes on."
        ),
    ],
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="A model of the same config to begin with, instead of random parameters."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after so long, with a checkpoint to go on with."),
    ] = None,
    dtype: DType = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that make batches.", show_default="all cores but one"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a small model that answers questions about streams.

    The data are made on the way: endless streams of prices, readings, log lines and changing facts,
    and questions whose answers are known exactly. The same config gives the same model; a run that
    was stopped goes on where its last checkpoint is.

    Example:

    jaxstate train configs/train/streams-20m.toml --into runs/mine --minutes 30
    """
    from jaxstate.cli.train import TrainOptions, run_train

    options = TrainOptions(
        config=config,
        into=into,
        start=start,
        minutes=minutes,
        dtype=dtype,
        workers=workers,
    )
    raise typer.Exit(run_train(Show(as_json=as_json), options))


def main() -> None:
    """Runs the command line; errors that we raise on purpose become a message and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal or a pipe cannot encode ends nothing: it is written out.
            stream.reconfigure(errors="backslashreplace")
    try:
        with ended_by_signals():
            app(prog_name="jaxstate")
    except JaxstateError as error:
        Show(as_json="--json" in sys.argv).error(str(error))
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:
        interrupt = _interrupt_in(ended)
        if interrupt is None:
            raise
        Show(as_json="--json" in sys.argv).note("interrupted: nothing more was done")
        _leave(interrupt.exit_code if isinstance(interrupt, Ended) else 130)


def _interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that ended a command; typer makes an exit of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _leave(exit_code: int) -> NoReturn:
    """Ends at once: what is being compiled would not hear of it for a while."""
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.name == "jaxstate-compile" for thread in threading.enumerate()):
        os._exit(exit_code)
    sys.exit(exit_code)
