"""Where `terrapod-listener join` takes its token from. Nothing here reaches a server."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from terrapod_listener.__main__ import main


def join(home: Path, *argv: str, stdin: bytes = b"", **environment: str) -> Result:
    """A server that `join` cannot even call: whatever reaches it ends with another message."""
    given = ["join", "--server", "no-url", "--home", str(home), *argv]
    return CliRunner().invoke(main, given, input=stdin, env=environment)


@pytest.mark.parametrize(
    "argv", [[], ["--token", "a", "--token-stdin"], ["--token-file", "f", "--token-stdin"], ["--token", "a", "--token-file", "f"]]
)  # fmt: skip
def test_one_source_is_needed(tmp_path: Path, argv: list[str]) -> None:
    refused = join(tmp_path, *argv)
    assert refused.exit_code == 2
    assert "from one of --token-file, --token-stdin and --token" in refused.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b" \n", b"two words\n", b"tpodjoin_a\ntpodjoin_b\n", b"\xff\n", b"a" * 5000])
def test_what_is_no_token_is_not_sent(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    refused = join(tmp_path / "home", "--token-file", str(file))
    assert (refused.exit_code, f"Error: {file} holds no join token" in refused.output) == (1, True), refused.output
    if content.count(b"\n") < 2:
        piped = join(tmp_path / "home", "--token-stdin", stdin=content)
        assert (piped.exit_code, "standard input holds no join token" in piped.output) == (1, True), piped.output


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = join(tmp_path, "--token-file", str(tmp_path / "none"))
    assert missing.exit_code == 1
    assert f"cannot read the join token from {tmp_path / 'none'}: No such file or directory" in missing.output


def test_an_option_wins_over_the_variables(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("")
    refused = join(tmp_path, "--token-file", str(file), TERRAPOD_LISTENER_TOKEN="tpodjoin_good")
    assert f"{file} holds no join token" in refused.output
    both = join(tmp_path, TERRAPOD_LISTENER_TOKEN="tpodjoin_good", TERRAPOD_LISTENER_TOKEN_FILE=str(file))
    assert (both.exit_code, "several were given" in both.output) == (2, True)
