"""Bearer tokens: who they let in, and every known way to forge one."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from joserfc import jwe, jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from models import ActorKind, Role
from services import workspaces
from services.actors import Viewer
from services.errors import Unauthenticated
from services.runtime import Runtime
from signoff import database, oidc
from signoff.app import create_app
from signoff.auth import Gate
from signoff.oidc.issuer_keys import MAX_BYTES
from signoff.oidc.tokens import REFUSED, OidcTokens
from signoff.settings import Settings
from tests.fakes.issuer import AUDIENCE, Issuer, ec, encoded, issuing, rsa, signed
from tests.support.graphql import answer, beside, gql, make_key, new_job, post
from tests.support.making import holds, until
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import connected, streaming


def taker(issuer: Issuer, **changes: Any) -> OidcTokens:
    given: dict[str, Any] = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE} | changes
    made = oidc.of(Settings(**given))
    assert isinstance(made, OidcTokens)
    made.keys.pause_seconds = 0
    return made


async def let_in(taking: OidcTokens, token: str) -> Viewer:
    return await taking.viewer_of(token, members_see_workspace=False)


async def refused(taking: OidcTokens, token: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await let_in(taking, token)
    assert str(caught.value) == REFUSED


@pytest.fixture
async def issuer() -> AsyncGenerator[Issuer]:
    async with issuing() as running:
        yield running


# Who is let in


async def test_a_good_token_names_its_caller(issuer: Issuer) -> None:
    viewer = await let_in(taker(issuer), issuer.token(exp=4_000_000_000))
    assert (viewer.kind, viewer.id, viewer.name) == (ActorKind.USER, "oidc:u-1", "Una")
    assert (viewer.role, viewer.workspace_id, viewer.is_scoped) == (Role.MEMBER, 1, False)
    assert viewer.expires_at is not None
    assert viewer.expires_at.timestamp() == 4_000_000_030
    assert issuer.fetched == ["configuration", "keys"]


async def test_every_algorithm_that_is_set_is_taken_and_no_other(issuer: Issuer) -> None:
    p384 = ECKey.generate_key("P-384", {"kid": "p384"})
    p521 = ECKey.generate_key("P-521", {"kid": "p521"})
    issuer.publish(rsa("one"), ec("two"), p384, p521)
    fit = {"RS": rsa("one"), "PS": rsa("one"), "ES256": ec("two"), "ES384": p384, "ES512": p521}
    every = [kind + size for kind in ("RS", "PS", "ES") for size in ("256", "384", "512")]
    made: dict[str, str] = {}
    for algorithm in every:
        key = fit.get(algorithm) or fit[algorithm[:2]]
        header = {"alg": algorithm, "kid": str(key.kid)}
        made[algorithm] = jwt.encode(header, issuer.claims(), key, [algorithm])
    taking = taker(issuer, oidc_algorithms=",".join(every))
    for token in made.values():
        assert (await let_in(taking, token)).id == "oidc:u-1"
    for algorithm, token in made.items():
        only = taker(issuer, oidc_algorithms=algorithm)
        assert (await let_in(only, token)).id == "oidc:u-1"
        for other, foreign in made.items():
            if other != algorithm:
                await refused(only, foreign)


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"name": "Una"}, "Una"),
        ({"name": None, "preferred_username": "una", "email": "u@x"}, "una"),
        ({"name": "", "email": "u@x"}, "u@x"),
        ({"name": 7, "email": "a\0b"}, "u-1"),
        ({"name": "\ud800"}, "u-1"),
        ({"name": "x" * 201}, "u-1"),
    ],
)
async def test_a_caller_has_the_best_name_there_is(
    issuer: Issuer, claims: dict[str, Any], name: str
) -> None:
    assert (await let_in(taker(issuer), issuer.token(**claims))).name == name


@pytest.mark.parametrize(
    ("claims", "settings", "role"),
    [
        ({"signoff_role": "VIEWER"}, {}, Role.VIEWER),
        ({"signoff_role": ["VIEWER", "ADMIN", "else", 7]}, {}, Role.ADMIN),
        ({"signoff_role": "admin"}, {}, None),
        ({"signoff_role": []}, {}, None),
        ({"signoff_role": None}, {}, None),
        ({"signoff_role": {"ADMIN": 1}}, {}, None),
        ({"groups": ["ops team"]}, {"oidc_role_claim": "groups", "oidc_roles": "ops team=ADMIN"},
         Role.ADMIN),
        ({"groups": ["ADMIN"]}, {"oidc_role_claim": "groups", "oidc_roles": "ops=ADMIN"}, None),
        ({"realm": {"roles": ["MEMBER"]}}, {"oidc_role_claim": "realm.roles"}, Role.MEMBER),
        ({"https://a.b/r": "MEMBER"}, {"oidc_role_claim": "https://a.b/r"}, Role.MEMBER),
        ({"realm": "MEMBER"}, {"oidc_role_claim": "realm.roles"}, None),
    ],
)  # fmt: skip
async def test_the_role_is_what_the_claim_means_by_the_settings(
    issuer: Issuer, claims: dict[str, Any], settings: dict[str, Any], role: Role | None
) -> None:
    taking, token = taker(issuer, **settings), issuer.token(**claims)
    if role is None:
        await refused(taking, token)
    else:
        assert (await let_in(taking, token)).role is role


async def test_clocks_may_differ_by_the_leeway(issuer: Issuer) -> None:
    taking, now = taker(issuer, oidc_leeway_seconds=100), int(time.time())
    for fine in ({"exp": now - 90}, {"nbf": now + 90}, {"iat": now + 90}, {"exp": now + 5.5}):
        assert await let_in(taking, issuer.token(**fine))
    for wrong in ({"exp": now - 110}, {"nbf": now + 130}, {"iat": now + 130}):
        await refused(taking, issuer.token(**wrong))


# Forgeries

Forge = Callable[[Issuer], str]


def header(**changes: Any) -> Forge:
    """The good token under another header, which the signature covers."""
    given = {"typ": "JWT", "alg": "RS256", "kid": "one"} | changes
    given = {name: value for name, value in given.items() if value is not None}
    return lambda issuer: signed(given, json.dumps(issuer.claims()).encode(), rsa("one"))


def claiming(**changes: Any) -> Forge:
    return lambda issuer: issuer.token(**changes)


def unsigned(algorithm: str, signature: str = "") -> Forge:
    head = encoded({"alg": algorithm, "kid": "one", "typ": "JWT"})
    return lambda issuer: f"{head}.{encoded(issuer.claims())}.{signature}"


def by_public_key(issuer: Issuer, form: str) -> str:
    """Signed by HMAC with the public key, which everybody knows."""
    secret = rsa("one").as_pem(private=False) if form == "pem" else rsa("one").as_der(private=False)
    head = encoded({"alg": "HS256", "kid": "one", "typ": "JWT"})
    text = f"{head}.{encoded(issuer.claims())}"
    return f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256'))}"


def own_key(**changes: Any) -> Forge:
    """By a key of the attacker, which the header brings along or says where to find."""

    def forge(issuer: Issuer) -> str:
        mine = rsa("mallory")
        given = {"alg": "RS256", "kid": "one"} | changes
        if changes.get("jwk") is ...:
            given["jwk"] = mine.as_dict(private=False)
        return jwt.encode(given, issuer.claims(), mine, ["RS256"])

    return forge


def tampered(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    return f"{head}.{encoded(issuer.claims(signoff_role='ADMIN'))}.{signature}"


def cut(issuer: Issuer) -> str:
    head, payload, signature = issuer.token().split(".")
    return f"{head}.{payload}.{signature[:-10]}"


def encrypted(issuer: Issuer) -> str:
    """To the issuer's public key: anybody can do that."""
    head = {"alg": "RSA-OAEP", "enc": "A256GCM", "kid": "one"}
    plain = json.dumps(issuer.claims()).encode()
    return jwe.encrypt_compact(head, plain, rsa("one"))


def nested(issuer: Issuer) -> str:
    deep = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    return f"{encoded(deep[:6000])}.{encoded(issuer.claims())}.x"


def payload(raw: bytes) -> Forge:
    """Signed by the issuer, but no object of claims."""
    return lambda issuer: signed({"alg": "RS256", "kid": "one"}, raw, rsa("one"))


def now(seconds: float) -> float:
    return int(time.time()) + seconds


FORGERIES: dict[str, Forge] = {
    "no signature, alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "alg nOnE with a signature": unsigned("nOnE", "AAAA"),
    "no alg": header(alg=None),
    "alg is a list": header(alg=["RS256"]),
    "empty signature": unsigned("RS256"),
    "HMAC with the public key as PEM": lambda issuer: by_public_key(issuer, "pem"),
    "HMAC with the public key as DER": lambda issuer: by_public_key(issuer, "der"),
    "another algorithm than allowed": lambda issuer: issuer.token(ec("two")),
    "a signature of another's key": own_key(),
    "a key in the header (jwk)": own_key(jwk=...),
    "where to find a key (jku)": own_key(jku="https://mallory.example/keys"),
    "where to find a certificate (x5u)": own_key(x5u="https://mallory.example/cert"),
    "a certificate in the header (x5c)": own_key(x5c=["AAAA"]),
    "an unknown kid": header(kid="nobody"),
    "a kid that is a path": header(kid="../../../../dev/null"),
    "a kid that is SQL": header(kid="one' OR '1'='1"),
    "a kid that is a number": header(kid=1),
    "a kid that is empty": header(kid=""),
    "claims changed after signing": tampered,
    "a signature cut short": cut,
    "extensions that must be understood (crit)": header(crit=["exp"], exp=1),
    "an unencoded payload (b64)": header(crit=["b64"], b64=False),
    "an encrypted token": encrypted,
    "a token of another type": header(typ="logout+jwt"),
    "a security event": header(typ="secevent+jwt"),
    "no dots": lambda issuer: "signed",
    "two dots alone": lambda issuer: "..",
    "four parts": lambda issuer: issuer.token() + ".AAAA",
    "not ASCII": lambda issuer: issuer.token() + "ü",
    "too long": lambda issuer: issuer.token(padding="x" * 20_000),
    "a header nested deep": nested,
    "a payload that is a list": payload(b"[]"),
    "a payload that is no JSON": payload(b"claims"),
    "a payload nested deep": payload(b'{"a":' * 2_000 + b"1" + b"}" * 2_000),
    "another issuer": claiming(iss="https://mallory.example"),
    "the issuer with a slash more": lambda issuer: issuer.token(iss=issuer.url + "/"),
    "no issuer": claiming(iss=None),
    "an issuer in a list": lambda issuer: issuer.token(iss=[issuer.url]),
    "another audience": claiming(aud="other"),
    "an audience that only begins so": claiming(aud="signoff2"),
    "no audience": claiming(aud=None),
    "an empty list of audiences": claiming(aud=[]),
    "an audience in an object": claiming(aud={"signoff": 1}),
    "over": lambda issuer: issuer.token(exp=now(-31)),
    "no end": claiming(exp=None),
    "an end that is text": claiming(exp="4000000000"),
    "an end that is true": claiming(exp=True),
    "an end that is not a number": claiming(exp=float("nan")),
    "an end that is infinite": claiming(exp=float("inf")),
    "an end beyond all calendars": claiming(exp=10**30),
    "not begun": lambda issuer: issuer.token(nbf=now(60)),
    "made in the future": lambda issuer: issuer.token(iat=now(60)),
    "no subject": claiming(sub=None),
    "an empty subject": claiming(sub=""),
    "a subject that is a number": claiming(sub=7),
    "a subject with U+0000": claiming(sub="a\0b"),
    "a subject that is too long": claiming(sub="x" * 196),
    "no role": claiming(signoff_role=None),
    "an unknown role": claiming(signoff_role="KING"),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_token_is_refused(issuer: Issuer, name: str) -> None:
    taking = taker(issuer)
    assert await let_in(taking, issuer.token())
    await refused(taking, FORGERIES[name](issuer))


async def test_a_key_is_for_signatures_of_its_own_algorithm(issuer: Issuer) -> None:
    for changes in ({"alg": "RS512"}, {"use": "enc"}):
        issuer.publish(rsa("one"), **changes)
        await refused(taker(issuer), issuer.token())
    issuer.publish(rsa("one"), alg="RS256", use="sig")
    assert await let_in(taker(issuer), issuer.token())


async def test_shared_secrets_and_weak_keys_of_the_issuer_are_left_out(issuer: Issuer) -> None:
    secret = OctKey.generate_key(256, {"kid": "secret"})
    with pytest.warns(Warning, match="2048"):
        weak = RSAKey.generate_key(1024, {"kid": "weak"})
    issuer.published = [
        secret.as_dict(private=True),
        weak.as_dict(private=False),
        {"kty": "RSA", "kid": "broken", "n": "!", "e": 7},
        {"kty": ["RSA"]},
        rsa("one").as_dict(private=False),
    ]
    taking = taker(issuer)
    assert await let_in(taking, issuer.token())
    await refused(taking, issuer.token(weak))
    await refused(
        taking, jwt.encode({"alg": "HS256", "kid": "secret"}, issuer.claims(), secret, ["HS256"])
    )


async def test_without_a_kid_the_key_must_be_the_only_one(issuer: Issuer) -> None:
    token = jwt.encode({"alg": "RS256"}, issuer.claims(), rsa("one"), ["RS256"])
    assert await let_in(taker(issuer), token)
    issuer.publish(rsa("one"), ec("two"))
    assert await let_in(taker(issuer), token)
    issuer.publish(rsa("one"), rsa("three"))
    await refused(taker(issuer), token)


# Keys that come and go


async def test_a_new_key_is_fetched_when_it_is_first_seen(issuer: Issuer) -> None:
    taking = taker(issuer)
    assert await let_in(taking, issuer.token())
    await refused(taking, issuer.token(rsa("three")))
    issuer.publish(rsa("one"), rsa("three"))
    assert await let_in(taking, issuer.token(rsa("three")))


async def test_unknown_keys_make_one_fetch_in_a_while(issuer: Issuer) -> None:
    taking = taker(issuer)
    taking.keys.pause_seconds = 1000
    token = issuer.token()
    assert await asyncio.gather(*[let_in(taking, token) for _ in range(20)])
    for _ in range(50):
        await refused(taking, issuer.token(rsa("mallory")))
    assert issuer.fetched == ["configuration", "keys"]


async def test_a_key_that_was_withdrawn_is_forgotten(issuer: Issuer) -> None:
    taking = taker(issuer)
    taking.keys.fresh_seconds = 0
    token = issuer.token()
    assert await let_in(taking, token)
    issuer.publish(rsa("three"))
    assert await let_in(taking, token)  # it is looked after in the background
    await holds(lambda: issuer.fetched.count("keys") >= 2)
    await holds(lambda: taking.keys.fetching is not None and taking.keys.fetching.done())
    await refused(taking, token)


BROKEN: dict[str, web.Response] = {
    "an error": web.Response(status=500, body=b"{}"),
    "nothing": web.Response(body=b""),
    "a page": web.Response(body=b"<html>"),
    "a list": web.Response(body=b"[]"),
    "no keys": web.Response(body=b'{"keys": []}'),
    "keys that are text": web.Response(body=b'{"keys": "one"}'),
    "a redirect": web.Response(status=302, headers={"Location": "/elsewhere"}),
    "too much": web.Response(body=b'{"keys": [], "p": "' + b"x" * MAX_BYTES + b'"}'),
    "a bomb": web.Response(body=b"\x1f\x8b" * 100, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_failing_issuer_does_not_lock_out_known_keys(issuer: Issuer, what: str) -> None:
    taking = taker(issuer)
    taking.keys.fresh_seconds = 0
    assert await let_in(taking, issuer.token())
    issuer.told = BROKEN[what]
    for _ in range(3):
        assert await let_in(taking, issuer.token())
        await refused(taking, issuer.token(rsa("three")))
    issuer.told = None
    issuer.publish(rsa("three"))
    await holds(lambda: taking.keys.fetching is not None and taking.keys.fetching.done())
    assert await let_in(taking, issuer.token(rsa("three")))


async def test_an_issuer_that_does_not_answer_holds_nobody_up_for_long(issuer: Issuer) -> None:
    taking = taker(issuer)
    taking.keys.fetch_seconds = 0.05
    issuer.silent = True
    await asyncio.gather(*[refused(taking, issuer.token()) for _ in range(5)])
    assert issuer.fetched.count("keys") == 1
    issuer.silent = False
    taking.keys.fetch_seconds = 5
    assert await let_in(taking, issuer.token())
    issuer.silent, taking.keys.fresh_seconds = True, 0
    assert await let_in(taking, issuer.token())  # does not wait for it
    issuer.silent = False


async def test_who_hangs_up_does_not_end_the_fetch_that_others_wait_for(issuer: Issuer) -> None:
    taking, token = taker(issuer), issuer.token()
    issuer.silent = True
    first, second = (asyncio.create_task(let_in(taking, token)) for _ in range(2))
    await holds(lambda: issuer.fetched.count("keys") == 1)
    first.cancel()
    issuer.silent = False
    assert (await second).id == "oidc:u-1"
    assert issuer.fetched.count("keys") == 1


@pytest.mark.parametrize(
    "told",
    [
        {"issuer": "https://mallory.example"},
        {"jwks_uri": None},
        {"jwks_uri": "http://keys.example.com/keys"},
        {"jwks_uri": "file:///etc/passwd"},
    ],
)
async def test_a_configuration_of_somebody_else_is_not_followed(
    issuer: Issuer, told: dict[str, Any]
) -> None:
    issuer.configuration = told
    await refused(taker(issuer), issuer.token())
    assert issuer.fetched == ["configuration"]
    named = taker(issuer, oidc_jwks_url=f"{issuer.url}/keys")
    assert await let_in(named, issuer.token())
    assert issuer.fetched == ["configuration", "keys"]


# A server that takes them


@asynccontextmanager
async def serving(
    url: str, folder: Path, start: AiohttpClient, issuer: Issuer, **changes: Any
) -> AsyncGenerator[Client]:
    given: dict[str, Any] = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE} | changes
    yield await start(create_app(settings_for(url, folder, **given)))


async def test_tokens_open_a_server_over_every_transport_and_keys_do_too(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient, issuer: Issuer
) -> None:
    who = "{ viewer { id name role workspace } }"
    una = {"id": "oidc:u-1", "name": "Una", "role": "MEMBER", "workspace": "default"}
    async with serving(database_url, tmp_path, aiohttp_client, issuer) as client:
        assert (await answer(client, who))["errors"] == [
            {
                "message": "Send an API key as “Authorization: Bearer signoff_…”, or a token of "
                "the issuer.",
                "extensions": {"code": "UNAUTHENTICATED"},
            }
        ]
        token = issuer.token()
        assert (await gql(client, who, token))["viewer"] == una
        async with connected(client, {"Authorization": f"Bearer {token}"}) as socket:
            assert await socket.next(await socket.subscribe(who)) == {"data": {"viewer": una}}
        await new_job(client, token, name="una's")
        await new_job(client, issuer.token(sub="u-2"), name="another's")
        key = await make_key(database_url, "Ada", Role.ADMIN)
        await new_job(client, key, name="ada's")
        mine = await gql(client, "{ jobs { nodes { name createdBy { kind id } } } }", token)
        owner = {"kind": "USER", "id": "oidc:u-1"}
        assert mine["jobs"]["nodes"] == [{"name": "una's", "createdBy": owner}]
        start = 'subscription { jobStatusChanged(after: "MA") { job { name } } }'
        async with streaming(client, start, token) as stream:
            assert (await stream.next())["data"]["jobStatusChanged"]["job"]["name"] == "una's"
        for forge in FORGERIES.values():
            async with await post(client, who, ascii_only(forge(issuer))) as response:
                body = await response.json()
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert body["errors"] == [
                    {"message": REFUSED, "extensions": {"code": "UNAUTHENTICATED"}}
                ]


def ascii_only(token: str) -> str:
    """What fits a header of a request."""
    return token[:7_000].encode("ascii", "replace").decode()


async def test_the_workspace_is_that_of_the_claim(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient, issuer: Issuer
) -> None:
    async def make() -> None:
        async with database.connected(database_url):
            await workspaces.create("acme")

    await beside(make())
    changes = {"oidc_workspace_claim": "org"}
    async with serving(database_url, tmp_path, aiohttp_client, issuer, **changes) as client:
        for org in ("acme", "default"):
            token = issuer.token(org=org, signoff_role="ADMIN")
            assert (await gql(client, "{ viewer { workspace } }", token))["viewer"] == {
                "workspace": org
            }
            await new_job(client, token, name=org)
        for org in ("acme", "default"):
            token = issuer.token(org=org, signoff_role="ADMIN")
            found = await gql(client, "{ jobs { totalCount nodes { name } } }", token)
            assert found["jobs"] == {"totalCount": 1, "nodes": [{"name": org}]}
        for org in (None, "nowhere", ["acme"], "", 1):
            body = await answer(client, "{ viewer { id } }", issuer.token(org=org))
            assert body["errors"][0]["message"] == REFUSED


async def test_an_open_connection_ends_with_its_token(rt: Runtime, issuer: Issuer) -> None:
    taking = taker(issuer, oidc_leeway_seconds=0)
    gate = Gate(local=True, tokens=taking)
    held: dict[str | None, Viewer] = {
        f"Bearer {name}": await let_in(taking, token)
        for name, token in (("lasting", issuer.token()), ("ending", issuer.token(exp=now(1))))
    }
    assert "Bearer lasting" in await gate.current(held)

    async def over() -> bool:
        return (await gate.current(held)).keys() == {"Bearer lasting"}

    await until(over)


def test_what_is_not_behind_https_is_refused_as_an_issuer() -> None:
    for url in ("http://id.example.com", "ftp://id.example.com", "id.example.com", "https//[x"):
        with pytest.raises(ValueError, match="must begin with https"):
            Settings(oidc_issuer=url, oidc_audience="x")
    with pytest.raises(ValueError, match="needs SIGNOFF_OIDC_AUDIENCE"):
        Settings(oidc_issuer="https://id.example.com")
    assert oidc.of(Settings()) is None
