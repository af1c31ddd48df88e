"""The client of people's programs, over real sockets: what is sent again, and what never is."""

from pathlib import Path

import httpx
import pytest

from kit.answering import CUT, OWN, Answer, answer, foreign, scripted
from terrapod_shared import errors
from terrapod_shared.client import Client, not_reached

THING = {"data": {"id": "ws-1", "type": "workspaces", "attributes": {"name": "a"}}}


def refusal(status: int, title: str, detail: str = "why") -> dict[str, object]:
    return {"errors": [{"status": str(status), "title": title, "detail": detail}]}


async def test_a_get_is_made_again_after_a_5xx_and_a_lost_answer() -> None:
    async with scripted(answer(503), CUT, answer(500), answer(200, THING)) as server:
        client = Client(server.url, "secret")
        assert (await client.get("workspaces/ws-1"))["id"] == "ws-1"
        assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer secret"] * 4
        await client.close()


async def test_a_post_is_made_again_under_one_key() -> None:
    under_way = answer(409, refusal(409, "still under way"))
    async with scripted(CUT, under_way, answer(201, THING), answer(201, THING)) as server:
        client = Client(server.url, "t")
        await client.send("POST", "workspaces", "workspaces", {"name": "a"})
        await client.send("POST", "workspaces", "workspaces", {"name": "a"})
        keys = [asked.headers["idempotency-key"] for asked in server.asked]
        assert keys[0] == keys[1] == keys[2] != keys[3]
        await client.close()


async def test_what_was_refused_is_not_asked_again() -> None:
    async with scripted(answer(409, refusal(409, "conflict", "it is locked"))) as server:
        client = Client(server.url, "t")
        with pytest.raises(errors.Conflict, match="it is locked"):
            await client.call("POST", "workspaces/ws-1/actions/lock")
        assert len(server.asked) == 1
        await client.close()


async def test_retry_after_is_kept_to_and_given_up_where_it_is_too_long() -> None:
    soon, late = answer(429, Retry_After="1"), answer(429, Retry_After="3600")
    async with scripted(soon, answer(200, THING), late) as server:
        client = Client(server.url, "t")
        heard: list[errors.TerrapodError] = []
        client.told = heard.append
        await client.get("workspaces/ws-1")
        assert [type(error) for error in heard] == [errors.TooManyRequests]
        with pytest.raises(errors.TooManyRequests):
            await client.get("workspaces/ws-1")
        await client.close()


async def test_a_delete_whose_answer_was_lost_was_done() -> None:
    async with scripted(CUT, answer(404), answer(404)) as server:
        client = Client(server.url, "t")
        await client.call("DELETE", "workspaces/ws-1")
        with pytest.raises(errors.NotFound):
            await client.call("DELETE", "workspaces/ws-1")
        await client.close()


async def test_pages_are_read_to_the_end_or_to_the_limit() -> None:
    def page(number: int, following: int | None) -> dict[str, object]:
        rows = [{"id": f"{number}-{place}", "type": "runs", "attributes": {}} for place in range(2)]
        pagination = {"current-page": number, "next-page": following, "total-count": 6}
        return {"data": rows, "meta": {"pagination": pagination}, "included": [{"type": "w", "id": str(number)}]}

    async with scripted(
        answer(200, page(1, 2)), answer(200, page(2, None)), answer(200, page(1, 2)), answer(200, page(2, 3))
    ) as server:
        client = Client(server.url, "t")
        found = await client.listing("runs", 0, **{"filter[status]": "applied", "search": None})
        assert [row["id"] for row in found.rows] == ["1-0", "1-1", "2-0", "2-1"]
        assert found.total == 6
        assert set(found.included) == {("w", "1"), ("w", "2")}
        assert server.asked[1].query == {"filter[status]": "applied", "page[number]": "2", "page[size]": "100"}
        assert len((await client.listing("runs", 3)).rows) == 3
        await client.close()


async def test_a_token_goes_to_the_api_alone(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    file.write_bytes(b"x" * 1_000_000)
    async with scripted(CUT, answer(200), (200, OWN, b"\x02log"), answer(400, {"error": "no"})) as server:
        client = Client(server.url, "t")
        sent: list[int] = []
        await client.upload(f"{server.url}/upload/x", file, sent.append)
        assert await client.read_log(f"{server.url}/log/x?old=1", 0, 10) == b"\x02log"
        assert (await client.form(f"{server.url}/oauth/token", {"code": "c"})).status_code == 400
        assert all("authorization" not in asked.headers for asked in server.asked)
        assert server.asked[1].body == file.read_bytes()
        assert server.asked[2].query == {"offset": "0", "limit": "10"}
        assert sent[-1] == 1_000_000
        await client.close()


async def test_nothing_goes_from_https_to_http(tmp_path: Path) -> None:
    client = Client("https://127.0.0.1:9", "t")
    (tmp_path / "a").write_bytes(b"secret")
    for attempt in (
        client.upload("http://127.0.0.1:9/x", tmp_path / "a"),
        client.read_log("http://127.0.0.1:9/x", 0, 1),
        client.form("http://127.0.0.1:9/x", {}),
    ):
        with pytest.raises(errors.BadGateway, match="nothing was sent"):
            await attempt
    await client.close()


async def test_no_server_is_said_so() -> None:
    client = Client("http://127.0.0.1:9", "t", patience_s=0.3)
    with pytest.raises(errors.Unavailable, match="cannot be reached"):
        await client.get("account/details")
    await client.close()
    async with scripted((200, {}, b"<html>")) as other:
        client = Client(other.url, "t")
        client.patience_s = 0
        with pytest.raises(errors.BadGateway, match="no Terrapod there"):
            await client.get("account/details")
        await client.close()


@pytest.mark.parametrize(
    "other",
    [
        foreign(404), foreign(403), foreign(401), foreign(302, Location="https://portal.example/"), foreign(200),
        foreign(404, {"message": "no Route matched with those values"}), (200, {}, b"<html>sign in here</html>"),
        foreign(404, {"errors": [{"status": "403", "title": "not found"}]}), foreign(409, {"errors": ["no"]}),
        (502, {}, b"[" * 100_000), (200, OWN, b'{"data": {"id": "ws'),
    ],
)  # fmt: skip
async def test_what_is_not_the_servers_answer_decides_nothing(other: Answer) -> None:
    """Of a proxy, an ingress, a captive portal; the last one is the server's, and was cut off."""
    async with scripted(other, answer(200, THING), other, answer(200, THING), other, answer(404)) as server:
        client = Client(server.url, "t")
        heard: list[errors.TerrapodError] = []
        client.told = heard.append
        assert (await client.get("workspaces/ws-1"))["id"] == "ws-1"
        await client.send("POST", "workspaces", "workspaces", {"name": "a"})
        assert server.asked[2].headers["idempotency-key"] == server.asked[3].headers["idempotency-key"]
        await client.call("DELETE", "workspaces/ws-1")  # the proxy may have lost the answer of one that was done
        assert [type(error) for error in heard] == [errors.Foreign] * 3
        client.patience_s = 0
        server.answers.append(other)
        with pytest.raises(errors.BadGateway, match="no Terrapod there"):
            await client.get("workspaces/ws-1")
        await client.close()


@pytest.mark.parametrize("other", [foreign(404), foreign(302), (200, {}, b"<html>"), foreign(503)])
async def test_files_and_logs_are_not_anothers(other: Answer, tmp_path: Path) -> None:
    file, got = tmp_path / "archive", tmp_path / "got"
    file.write_bytes(b"x" * 1000)
    async with scripted() as server:
        client = Client(server.url, "t")
        server.answers = [other, answer(200)]
        await client.upload(f"{server.url}/upload/x", file)
        server.answers = [other, (200, OWN, b"\x02log\x03")]
        assert await client.read_log(f"{server.url}/log/x", 0, 10) == b"\x02log\x03"
        there = answer(302, Location=f"{server.url}/file")
        server.answers = [other, there, other, there, (200, OWN, b"state")]
        assert await client.download("late-states/x/download", got) == 5
        assert got.read_bytes() == b"state"
        server.answers = [other, answer(200, {"access_token": "t"})]
        assert (await client.form(f"{server.url}/oauth/token", {"code": "c"})).status_code == 200
        assert len(server.asked) == 11
        await client.close()


async def test_a_code_is_bought_once_where_the_answer_was_lost() -> None:
    async with scripted(CUT, answer(200)) as server:
        client = Client(server.url)
        with pytest.raises(errors.Unavailable):
            await client.form(f"{server.url}/oauth/token", {"code": "c"})
        assert len(server.asked) == 1
        await client.close()


async def test_an_error_is_the_servers_by_its_document_alone() -> None:
    """A proxy may drop headers that it does not know."""
    async with scripted(foreign(404, refusal(404, "not found", "no such run"))) as server:
        client = Client(server.url)
        with pytest.raises(errors.NotFound, match="no such run"):
            await client.get("runs/run-1")
        await client.close()


@pytest.mark.parametrize(
    ("why", "hint"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate is not yet valid", "; is this host's clock right?"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired", "; is this host's clock right?"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer", "; --ca names the authority to trust"),
        ("Connection refused", "Connection refused"),
    ],
)
def test_an_untrusted_certificate_says_what_to_do(why: str, hint: str) -> None:
    assert not_reached("https://a", httpx.ConnectError(why)).endswith(hint)
