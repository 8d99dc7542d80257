import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError, KernelError } from "../../base/errno.ts";
import {
  decodeAgentMessage,
  decodeClientMessage,
  decodeRegisterResult,
  encodeError,
  RESOURCES_MAX,
} from "./protocol.ts";

const RESOURCE = {
  kind: "memory",
  label: "memfd",
  bytes: 4096,
  compatibles: ["memfd-v2"],
  blocker: null,
  essential: true,
};
const CALLS: Record<string, object> = {
  status: { from: 3 },
  plan: { target: { kernel: "/k", initrd: null, commandLine: "a b" }, without: ["iommufd"] },
  update: { target: {}, dryRun: true, timeoutSeconds: 9, allowUnknown: true },
  restore: { abandon: ["vm0", "vm1"], timeoutSeconds: 1 },
  register: { vm: "vm0", resources: [RESOURCE], state: "restored", fds: 1 },
  running: { atNs: 1.5e9 },
  failed: { error: { code: "ENOMEM", message: "ENOMEM: no memory" } },
  resources: { resources: [] },
  unregister: {},
};

function call(name: string, changes: object = {}) {
  return decodeClientMessage(JSON.stringify({ id: 5, call: name, ...CALLS[name], ...changes }));
}

test("decodeClientMessage() reads every call, with what is absent as its default", () => {
  const choice = {
    target: { kernel: "/k", initrd: null, commandLine: "a b" },
    degradation: { without: ["iommufd"], allowUnknown: false },
  };
  const wanted: Record<string, object> = {
    status: { from: 3 },
    plan: { choice },
    update: {
      choice: { target: {}, degradation: { without: [], allowUnknown: true } },
      dryRun: true,
      timeoutNs: 9e9,
    },
    restore: { abandon: ["vm0", "vm1"], timeoutNs: 1e9 },
    register: { vm: "vm0", resources: [RESOURCE], state: "restored" },
    running: { atNs: 1.5e9 },
    failed: { error: { code: "ENOMEM", message: "no memory" } },
    resources: { resources: [] },
    unregister: {},
  };
  for (const name of Object.keys(CALLS)) {
    const message = call(name, { later: "is ignored" });
    assert.ok(message.kind === "call", name);
    assert.deepEqual(message.request, { call: name, ...wanted[name] });
    assert.deepEqual([message.id, message.fds], [5, name === "register" ? 1 : 0]);
  }
  const bare = decodeClientMessage('{"id": 1, "call": "update"}');
  assert.ok(bare.kind === "call");
  assert.deepEqual(bare.request, {
    call: "update",
    choice: { target: {}, degradation: { without: [], allowUnknown: false } },
    dryRun: false,
    timeoutNs: null,
  });
});

test("decodeClientMessage() refuses a wrong field of a call by its name, for the call's id", () => {
  const long = "x".repeat(5000);
  const wrong: [name: string, changes: object, field: RegExp][] = [
    ["status", { from: -1 }, /from/],
    ["status", { from: "0" }, /from/],
    ["status", { call: "explode" }, /call/],
    ["status", { call: null }, /call/],
    ["status", { fds: 1 }, /fds/],
    ["plan", { target: [] }, /target/],
    ["plan", { target: { kernel: "relative" } }, /target\.kernel/],
    ["plan", { target: { kernel: "/a\0b" } }, /target\.kernel/],
    ["plan", { target: { initrd: 7 } }, /target\.initrd/],
    ["plan", { target: { kernel: `/${long}` } }, /target\.kernel/],
    ["plan", { target: { commandLine: long } }, /target\.commandLine/],
    ["plan", { target: { commandLine: "a\nb" } }, /target\.commandLine/],
    ["plan", { without: ["disk"] }, /without\[0\]/],
    ["plan", { without: Array(5).fill("device") }, /without has 5/],
    ["plan", { allowUnknown: "yes" }, /allowUnknown/],
    ["update", { dryRun: 1 }, /dryRun/],
    ["update", { timeoutSeconds: 0 }, /timeoutSeconds/],
    ["update", { timeoutSeconds: 3601 }, /timeoutSeconds/],
    ["update", { timeoutSeconds: 1.5 }, /timeoutSeconds/],
    ["restore", { abandon: "vm0" }, /abandon/],
    ["restore", { abandon: ["", "vm0"] }, /abandon\[0\]/],
    ["restore", { abandon: Array(257).fill("vm0") }, /abandon has 257/],
    ["register", { vm: undefined }, /vm is missing/],
    ["register", { vm: "holdfast-agent" }, /agent's own/],
    ["register", { vm: "a/b" }, /vm/],
    ["register", { vm: "-a" }, /vm/],
    ["register", { vm: "a".repeat(64) }, /vm/],
    ["register", { vm: "ä" }, /vm/],
    ["register", { state: "asleep" }, /state/],
    ["register", { state: "starting" }, /fds is 1; this call goes with 0/],
    ["register", { fds: 0 }, /fds is 0; this call goes with 1/],
    ["register", { fds: 2 }, /fds/],
    ["register", { resources: Array(RESOURCES_MAX + 1).fill(RESOURCE) }, /resources has 65/],
    ["register", { resources: [{ ...RESOURCE, kind: "cpu" }] }, /resources\[0\]\.kind/],
    ["register", { resources: [{ ...RESOURCE, label: long }] }, /resources\[0\]\.label/],
    ["register", { resources: [{ ...RESOURCE, label: "\u001b[2J" }] }, /resources\[0\]\.label/],
    ["register", { resources: [{ ...RESOURCE, bytes: -1 }] }, /resources\[0\]\.bytes/],
    ["register", { resources: [{ ...RESOURCE, bytes: 2 ** 53 }] }, /resources\[0\]\.bytes/],
    ["register", { resources: [{ ...RESOURCE, compatibles: [7] }] }, /compatibles\[0\]/],
    ["register", { resources: [{ ...RESOURCE, compatibles: Array(4).fill("x") }] }, /compatibles/],
    ["register", { resources: [{ ...RESOURCE, blocker: long }] }, /blocker/],
    ["register", { resources: [{ ...RESOURCE, essential: undefined }] }, /essential/],
    ["running", { atNs: -1 }, /atNs/],
    ["running", { atNs: "1" }, /atNs/],
    ["running", { atNs: null }, /atNs/],
    ["failed", { error: null }, /error/],
    ["failed", { error: { code: 5, message: "x" } }, /error\.code/],
    ["resources", { resources: {} }, /resources/],
  ];
  for (const [name, changes, field] of wrong) {
    const message = call(name, changes);
    const what = `${name} ${JSON.stringify(changes).slice(0, 80)}`;
    assert.ok(message.kind === "refused", what);
    assert.equal(message.id, 5);
    assert.equal(message.error.code, "EINVAL");
    assert.match(message.error.message, field, what);
  }
});

test("decodeClientMessage() and decodeAgentMessage() fail with EPROTO when it is no message", () => {
  const lines = [
    "",
    "{",
    "7",
    "null",
    "[]",
    '"x"',
    "{}",
    '{"id": "1"}',
    '{"id": -1}',
    '{"id": 1.5}',
  ];
  const isEproto = (error: unknown) => isKernelError(error, "EPROTO");
  for (const line of [...lines, '{"id": 0, "call": "status"}', '{"answer": []}'])
    assert.throws(() => decodeClientMessage(line), isEproto, line);
  for (const line of [...lines, '{"id": 1}', '{"ask": {}}', '{"id": 1, "error": 5}'])
    assert.throws(() => decodeAgentMessage(line), isEproto, line);
  // As deep as a line can be.
  const deep = "[".repeat(30_000);
  assert.throws(() => decodeClientMessage(deep), isEproto);
  assert.throws(() => decodeClientMessage(`${deep}${"]".repeat(30_000)}`), isEproto);
});

test("a field that only an object's prototype has is not there", () => {
  const message = decodeClientMessage('{"id": 1, "call": "constructor"}');
  assert.equal(message.kind, "refused");
  assert.throws(() => decodeClientMessage('{"__proto__": {"id": 1, "call": "status"}}'));
});

test("decodeAgentMessage() reads what an agent says", () => {
  const read = (message: object) => decodeAgentMessage(JSON.stringify(message));
  assert.deepEqual(read({ ask: 3, do: "preserve", without: ["device"], fds: 1 }), {
    kind: "ask",
    id: 3,
    fds: 1,
    ask: { do: "preserve", without: ["device"] },
  });
  assert.deepEqual(read({ ask: 3, do: "pause" }), {
    kind: "ask",
    id: 3,
    fds: 0,
    ask: { do: "pause" },
  });
  assert.equal(read({ ask: 3, do: "dance" }).kind, "refused");
  assert.deepEqual(read({ id: 3, event: { kind: "jump" } }), {
    kind: "event",
    id: 3,
    event: { kind: "jump" },
  });
  assert.deepEqual(read({ id: 3, result: { a: 1 }, fds: 1 }), {
    kind: "result",
    id: 3,
    fds: 1,
    result: { a: 1 },
  });
});

test("an error keeps its errno on the way, is cut off, and does no harm to a terminal", () => {
  const error = new KernelError("EBUSY", "unlink", `pinned\u001b[2J${"x".repeat(5000)}`);
  const message = decodeAgentMessage(JSON.stringify({ id: 1, error: encodeError(error) }));
  assert.ok(message.kind === "error");
  assert.equal(message.error.code, "EBUSY");
  assert.match(message.error.message, /^EBUSY: agent: unlink: pinned \[2Jx/);
  assert.ok(message.error.message.length < 1100);
  const odd = { code: "EWHATEVER", message: "EWHATEVER: it is odd" };
  const answer = decodeClientMessage(JSON.stringify({ answer: 1, error: odd }));
  assert.deepEqual(answer, {
    kind: "answer",
    ask: 1,
    error: { code: "EIO", message: "it is odd" },
  });
});

test("decodeRegisterResult() fails with EPROTO when a field is wrong", () => {
  assert.deepEqual(decodeRegisterResult({ session: { fds: 1 }, update: 2 }), {
    session: { fds: 1 },
    update: 2,
  });
  for (const result of [
    null,
    {},
    { session: {}, update: 1 },
    { session: { fds: 2 }, update: 1 },
    { session: null, update: -1 },
  ])
    assert.throws(
      () => decodeRegisterResult(result),
      (error) => isKernelError(error, "EPROTO"),
    );
});
