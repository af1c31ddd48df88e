"""The listener protocol as messages, free of transport. Pure. Version 2.

The order of one listener's life; the listener begins every exchange:

 1. `Join` -> `Joined`             once; the token is spent, keys are pinned
 2. `Renew` -> `Renewed`           at half of the certificate's life
 3. `Beat` -> `Pulse`              every 10 s while it works; by long poll then
 4. (GET runs/next) -> `Work`      an offer of 15 s; 204 after `wait` seconds
 5. `Report(planning|applying)`    accepts the offer: it is a lease from then on
 6. log chunks, artifacts          each write carries the lease's number
 7. `Report(planned|applied|errored|canceled)`  ends the phase

Members are snake_case. Times are unix seconds, lengths are seconds, sizes
bytes, digests lower-case hex of SHA-256 unless named otherwise, keys and
sealed values base64 (RFC 4648, padded).

Who breaks if a member changes: every listener in the field. Add members with
defaults only; unknown ones are ignored by both sides.
"""

from typing import Any, Final, Literal

import msgspec

PROTOCOL: Final = 2
#: A listener of this version may do all but take work: it ends what it has.
PROTOCOL_LEAST: Final = 1
PROTOCOL_HEADER: Final = "Terrapod-Protocol"  #: of every request, and of every answer of the server
LEASE_HEADER: Final = "Terrapod-Lease"  #: the lease's number; `0` where none is meant
DIGEST_HEADER: Final = "Terrapod-SHA256"  #: of an artifact, in answers and uploads
ANSWER_SIGNATURE_HEADER: Final = "Terrapod-Answer-Signature"  #: by the server's key, over the answer and its request
DRAIN_HEADER: Final = "Terrapod-Drain"  #: of a 204: the listener is to take no more work
SIGNED_COMPONENTS: Final = (
    "@method",
    "@path",
    "@query",
    "content-digest",
    "terrapod-lease",
    "terrapod-protocol",
)
SIGNATURE_LABEL: Final = "terrapod"
SIGNATURE_TAG: Final = "terrapod-listener"
SIGNATURE_AGE_S: Final = 60
OFFER_S: Final = 15
LEASE_S: Final = 40
BEAT_S: Final = 10
POLL_S: Final = 30
#: In one heartbeat, of `Beat.left`.
LEFT_MOST: Final = 200

Phase = Literal["plan", "apply"]
Artifact = Literal["plan-file", "lock-file", "plan-json", "schemas", "state"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Root of all messages."""


class Join(Message, frozen=True, kw_only=True):
    """POST agent-pools/join. A known name of the same pool also needs the old key's signature."""

    join_token: str
    name: str
    csr: str = ""  #: PEM; only its public key (Ed25519) is taken
    sealing_key: str = ""  #: X25519 public key, raw, base64
    version: str = ""
    runner_definitions: list[str] = []  #: of the reference; kept, not used


class Joined(Message, frozen=True, kw_only=True):
    """Answer to `Join`, under `data`."""

    listener_id: str
    pool_id: str
    certificate: str  #: PEM
    ca_certificate: str  #: PEM
    server_key: str  #: Ed25519 public key that signs work, raw, base64; to be pinned
    private_key: str = ""  #: only where the pool allows server-made keys


class Renew(Message, frozen=True, kw_only=True):
    """POST listeners/{id}/renew, signed with the key that is being replaced."""

    csr: str
    sealing_key: str = ""


class Renewed(Message, frozen=True, kw_only=True):
    """Answer to `Renew`, under `data`."""

    certificate: str
    ca_certificate: str


class HeldLease(Message, frozen=True, kw_only=True):
    """A lease as its holder sees it."""

    run_id: str
    phase: Phase
    number: int
    step: str = ""  #: where in its phase it is: `init`, `plan`, `show`, `apply`, `upload` ...
    #: What its holder has heard of it already: the answer need not come at once for that.
    cancel: Literal["", "cancel", "force-cancel"] = ""
    is_lost: bool = False


class LocalEngine(Message, frozen=True, kw_only=True):
    """A binary that the host's owner vouches for."""

    tool: Literal["terraform", "tofu"]
    version: str
    sha256: str


class Accepts(Message, frozen=True, kw_only=True):
    """Which work a listener takes, by the word of its host's owner. What is empty leaves all open.

    In patterns `*` stands for any letters and `?` for one. A workspace must
    match one of `workspaces` by its name, and all of `labels`.
    """

    workspaces: list[str] = []  #: patterns of names, of which one must match
    labels: dict[str, str] = {}  #: key -> pattern of the value; all must match
    phases: list[Phase] = []  #: `plan`, `apply`
    tools: list[Literal["terraform", "tofu"]] = []  #: `terraform`, `tofu`


class Beat(Message, frozen=True, kw_only=True):
    """POST listeners/{id}/heartbeat?wait=SECONDS."""

    leases: list[HeldLease] = []
    free_slots: int = 0
    capacity: int = 1
    local_engines: list[LocalEngine] = []
    isolation: str = "none"
    version: str = ""
    os: str = "linux"
    arch: str = "amd64"
    draining: bool = False
    spooled: list[dict[str, Any]] = []  #: states not delivered yet: run_id, serial, lineage, md5
    left: list[
        str
    ] = []  #: runs whose folders stay here, since what is left of their state is not whole; LEFT_MOST at most
    accepts: Accepts = Accepts()


class LeaseVerdict(Message, frozen=True, kw_only=True):
    """What became of a lease: prolonged by `seconds`, held, taken up again, or lost."""

    run_id: str
    phase: Phase
    number: int
    verdict: Literal["ok", "held", "resumed", "lost"]
    seconds: float = 0.0


class Pulse(Message, frozen=True, kw_only=True):
    """Answer to `Beat`."""

    server_time: float
    leases: list[LeaseVerdict] = []
    cancels: dict[str, Literal["cancel", "force-cancel"]] = {}  #: by run id
    drain: bool = False
    renew: bool = False
    settled: list[str] = []  #: of `left`: a person has adopted or dropped the late state, or the run is gone
    status: str = "ok"


class Lease(Message, frozen=True, kw_only=True):
    number: int
    seconds: float  #: how long it holds once accepted
    offer_seconds: float = OFFER_S  #: how long the offer stands


class Options(Message, frozen=True, kw_only=True):
    """How the run was asked for."""

    is_destroy: bool = False
    refresh: bool = True
    refresh_only: bool = False
    target_addrs: list[str] = []
    replace_addrs: list[str] = []
    allow_empty_apply: bool = False
    allow_config_generation: bool = False
    plan_only: bool = False
    save_plan: bool = False
    structured: bool = False  #: JSON lines in the log
    message: str = ""


class Engine(Message, frozen=True, kw_only=True):
    """The binary to run. `local`: the listener's own of exactly that version and digest."""

    tool: Literal["terraform", "tofu"]
    version: str
    sha256: str  #: of the release's zip, or of the local engine
    local: bool = False


class Variable(Message, frozen=True, kw_only=True):
    """`value` is text, or HCL where `hcl`; sensitive ones come in `sealed` alone.

    `sealed` is HPKE (X25519, HKDF-SHA256, AES-256-GCM) to the listener's key, with
    the info `terrapod|<run>|<phase>|<lease number>|<category>|<key>`, base64.
    """

    key: str
    category: Literal["terraform", "env"]
    value: str = ""
    sealed: str = ""
    hcl: bool = False
    sensitive: bool = False
    from_run: bool = False  #: a run variable


class StateRef(Message, frozen=True, kw_only=True):
    serial: int
    lineage: str
    md5: str


class Link(Message, frozen=True, kw_only=True):
    """A path on the server, to be asked for with a signed GET that carries the lease."""

    path: str
    sha256: str = ""
    size: int = 0


#: Bytes of what a plan leaves: more is not sent, and not taken.
ARTIFACT_MOST = {"plan-file": 512 << 20, "lock-file": 4 << 20, "plan-json": 256 << 20, "schemas": 256 << 20}


class Limits(Message, frozen=True, kw_only=True):
    log_bytes: int = 1 << 30
    plan_s: float = 7200.0
    apply_s: float = 86400.0
    cancel_grace_s: float = 120.0
    unpacked_bytes: int = 4 << 30
    unpacked_entries: int = 100_000
    cpu: str = ""
    memory: str = ""


class Work(Message, frozen=True, kw_only=True):
    """One phase of a run. The answer is signed by the server's key, for the poll that asked for it."""

    listener_id: str
    run_id: str
    phase: Phase
    lease: Lease
    workspace_id: str
    workspace_name: str
    engine: Engine
    labels: dict[str, str] = {}  #: of the workspace
    organization: str = "default"
    project_name: str = "Default Project"
    configuration_version_id: str = ""
    working_directory: str = ""
    options: Options = Options()
    variables: list[Variable] = []
    run_token: str = ""
    hosts: list[str] = []  #: `host:port` as configurations may name this server: the run token is for all of them
    state: StateRef | None = None
    links: dict[str, Link] = {}  #: `configuration state plan lock-file engine`
    limits: Limits = Limits()
    log_offset: int = 0  #: where the phase's log goes on: an earlier listener may have begun it
    issued_at: float = 0.0
    waited: str = ""  #: how long the phase waited and for what, for its log; empty where that is not worth a line


class Report(Message, frozen=True, kw_only=True):
    """PATCH listeners/{id}/runs/{run}."""

    phase: Phase
    status: Literal["planning", "applying", "refused", "planned", "applied", "errored", "canceled"]
    reason: str = ""  #: of a refusal
    is_unwilling: bool = False  #: refused by the host owner's word (`Accepts`), which says nothing about the run
    error_message: str = ""
    exit_code: int | None = None
    has_changes: bool | None = None
    resource_additions: int = 0
    resource_changes: int = 0
    resource_destructions: int = 0
    resource_imports: int = 0
    generated_configuration: bool = False
    digests: dict[str, str] = {}  #: of the artifacts that were uploaded
    log_bytes: int = 0  #: of the phase's raw log, all of which has been sent
    state: Literal["", "unchanged", "uploaded", "spooled"] = ""
    unknown: str = ""  #: of an apply: why what it has made may be in no state, also in one that was uploaded


class Reported(Message, frozen=True, kw_only=True):
    """Answer to `Report`. `kept` says that the server has what the spool holds."""

    status: str  #: the run's
    kept: bool = True
    seconds: float = 0.0


class LogAnswer(Message, frozen=True, kw_only=True):
    next_offset: int
    cancel: Literal["", "cancel", "force-cancel"] = ""


def answer_signature_base(listener_id: str, nonce: str, status: int, body_sha256: str) -> bytes:
    """What the server's key signs of an answer: it is for one listener, and for the one request with that nonce."""
    return f"terrapod-answer-2\n{listener_id}\n{nonce}\n{status}\n{body_sha256}\n".encode()


def clock_signature_base(listener_id: str, nonce: str, server_time: float) -> bytes:
    """What the server's key signs of its time, in unix seconds, in an answer to the request with that nonce."""
    return f"terrapod-clock-2\n{listener_id}\n{nonce}\n{server_time:.3f}\n".encode()


def seal_info(run_id: str, phase: str, number: int, category: str, key: str) -> bytes:
    """What a sealed variable is bound to."""
    return f"terrapod|{run_id}|{phase}|{number}|{category}|{key}".encode()
