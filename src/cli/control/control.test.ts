/** The operator's commands as a user starts them, against an agent that says what a test wants. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import type {
  PlanResult,
  RestoreResult,
  StatusResult,
  VmStatus,
} from "../../agent/control/protocol.ts";

const MAIN = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "../main.ts" : "../main.js", import.meta.url),
);

interface Call {
  readonly id: number;
  readonly call: string;
  readonly [field: string]: unknown;
}

/** What the agent does with a call. */
type Respond = (call: Call, say: (message: object) => void, socket: Socket) => void;

let folder: string;
let path: string;
let server: Server | null = null;
const calls: Call[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "holdfast-"));
  path = join(folder, "agent.sock");
  calls.length = 0;
});

afterEach(async () => {
  if (server !== null) {
    server.close();
    await once(server, "close");
    server = null;
  }
  rmSync(folder, { recursive: true });
});

async function serve(respond: Respond): Promise<void> {
  server = createServer((socket) => {
    socket.on("error", () => undefined);
    createInterface({ input: socket }).on("line", (line) => {
      const call = JSON.parse(line) as Call;
      calls.push(call);
      respond(call, (message) => socket.write(`${JSON.stringify(message)}\n`), socket);
    });
  });
  server.listen(path);
  await once(server, "listening");
}

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

async function run(...args: string[]): Promise<Outcome> {
  const child = spawn(process.execPath, [...process.execArgv, MAIN, ...args, "--socket", path], {
    env: { ...process.env, HOLDFAST_DEBUG: "" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const text = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    child[name].setEncoding("utf8").on("data", (piece: string) => {
      text[name] += piece;
    });
  const [status] = (await once(child, "close")) as [number | null];
  return { status, ...text };
}

const jsonLines = ({ stdout }: Outcome): unknown[] =>
  stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as unknown);

const GIB = 2 ** 30;

function vm(name: string, changes: Partial<VmStatus> = {}): VmStatus {
  const resources = [
    {
      kind: "memory" as const,
      label: `memfd ${name}`,
      bytes: GIB,
      compatibles: ["memfd-v2"],
      blocker: null,
      essential: true,
    },
  ];
  const rest = { pid: 412, uid: 1000, resources, blackoutNs: null, problem: null };
  return { name, state: "running", ...rest, ...changes };
}

const STATUS: StatusResult = {
  release: "7.3.0",
  updates: 2,
  activity: "idle",
  phases: [
    { update: 2, name: "preflight", startNs: 1e9, endNs: 1.0125e9 },
    { update: 2, name: "restore", startNs: 3e9, endNs: 3.25e9 },
  ],
  notes: ["the state file was of another boot"],
  total: 3,
  vms: [vm("vm0", { blackoutNs: 1.5e9 }), vm("vm1", { state: "lost", problem: "its VMM ended" })],
  next: 2,
};

const PLAN: PlanResult = {
  target: { kernel: "/boot/k", initrd: null, commandLine: "liveupdate=on", release: "7.4.0" },
  vms: 3,
  guestBytes: 3 * GIB,
  leftBehind: ["vm0: iommufd /dev/iommu"],
  warnings: [],
  blocked: 0,
  blockers: [],
};

const RESTORE: RestoreResult = { restored: 3, left: 0, waiting: [], abandoned: [] };

describe("status", () => {
  const pages: Respond = ({ id, from }, say) => {
    const page = from === undefined ? STATUS : { ...STATUS, vms: [vm("vm2")], next: null };
    say({ id, result: page });
  };

  test("shows the VMs of all pages, what is wrong, and the last update", async () => {
    await serve(pages);
    const { status, stdout, stderr } = await run("status");
    assert.deepEqual([status, stderr], [0, ""]);
    assert.deepEqual(stdout.split("\n"), [
      "kernel 7.3.0, 2 updates since the cold boot, idle",
      "note: the state file was of another boot",
      "",
      "vm   state    pid   uid  memory  resources",
      "vm0  running  412  1000   1 GiB  memory memfd vm0",
      "vm1  lost     412  1000   1 GiB  memory memfd vm1",
      "vm2  running  412  1000   1 GiB  memory memfd vm2",
      "vm1: its VMM ended",
      "",
      "update 2",
      "  preflight     12.50 ms",
      "  restore      250.00 ms",
      "  vm0         1500.00 ms  blackout",
      "",
    ]);
  });

  test("--json prints one object with all VMs", async () => {
    await serve(pages);
    const outcome = await run("status", "--json");
    assert.equal(outcome.status, 0);
    const expected = { ...STATUS, vms: [...STATUS.vms, vm("vm2")], next: null };
    assert.deepEqual(jsonLines(outcome), [expected]);
  });

  test("ends when the agent's pages lead nowhere", async () => {
    await serve(({ id }, say) => say({ id, result: { ...STATUS, next: 1 } }));
    const outcome = await run("status", "--json");
    assert.equal(outcome.status, 0);
    assert.equal(calls.length, 2);
  });
});

describe("plan", () => {
  test("sends the target and what to leave behind, with absolute paths, and nothing that was not said", async () => {
    await serve(({ id }, say) => say({ id, result: PLAN }));
    await run("plan");
    const options = ["--kernel", "/boot/k", "--initrd", "i", "--command-line", "liveupdate=on a=b"];
    await run("plan", ...options, "--without", "iommufd", "--without", "device", "--allow-unknown");
    await run("plan", "--no-initrd");
    const none = { without: [], allowUnknown: false };
    assert.deepEqual(
      calls.map(({ id: _, ...fields }) => fields),
      [
        { call: "plan", target: {}, ...none },
        {
          call: "plan",
          target: {
            kernel: "/boot/k",
            initrd: join(process.cwd(), "i"),
            commandLine: "liveupdate=on a=b",
          },
          without: ["iommufd", "device"],
          allowUnknown: true,
        },
        { call: "plan", target: { initrd: null }, ...none },
      ],
    );
  });

  test("shows what would be done, exit status 0", async () => {
    await serve(({ id }, say) => say({ id, result: PLAN }));
    const { status, stdout, stderr } = await run("plan");
    assert.deepEqual([status, stderr], [0, ""]);
    assert.deepEqual(stdout.split("\n"), [
      "kernel        /boot/k, 7.4.0",
      "initrd        none",
      "command line  liveupdate=on",
      "kept          3 VMs with 3 GiB of memory",
      "left behind   vm0: iommufd /dev/iommu",
      "nothing stands in the way",
      "",
    ]);
  });

  test("names what stands in the way, and how much is not named, exit status 1", async () => {
    const blocked = { ...PLAN, blocked: 3, blockers: ["a", "b"], warnings: ["c"] };
    await serve(({ id }, say) => say({ id, result: blocked }));
    const [text, json] = await Promise.all([run("plan"), run("plan", "--json")]);
    assert.deepEqual([text.status, json.status], [1, 1]);
    assert.deepEqual(text.stdout.split("\n").slice(5), [
      "warning       c",
      "blocked       a",
      "blocked       b",
      "blocked       by 1 more reasons",
      "the update cannot be done like this",
      "",
    ]);
    assert.deepEqual(jsonLines(json), [blocked]);
  });
});

describe("update", () => {
  const phase = (name: string, endNs: number | null) => ({
    kind: "phase",
    update: 3,
    name,
    startNs: 1e9,
    endNs,
  });
  const events = [phase("preflight", null), phase("preflight", 1.002e9), phase("pause", 1.5e9)];
  const jump = { kind: "jump", update: 3 };

  test("tells each phase and the jump, and exits with 0 when the connection ends with it", async () => {
    await serve(({ id }, say, socket) => {
      for (const event of [...events, { kind: "news" }, jump]) say({ id, event });
      socket.end();
    });
    const [text, json] = await Promise.all([
      run("update", "--timeout", "7"),
      run("update", "--json"),
    ]);
    assert.deepEqual([text.status, text.stderr, json.status, json.stderr], [0, "", 0, ""]);
    const lines = text.stdout.split("\n");
    assert.deepEqual(lines.slice(0, 3), [
      "update 3",
      "  preflight      2.00 ms",
      "  pause        500.00 ms",
    ]);
    assert.match(lines[3], /^jumping: /);
    assert.deepEqual(jsonLines(json), [
      ...[...events, jump].map((event) => ({ event })),
      { jumped: true },
    ]);
    const timed = calls.find(({ timeoutSeconds }) => timeoutSeconds !== undefined);
    assert.equal(timed?.["timeoutSeconds"], 7);
  });

  test("exits with 1 and the agent's reason when the update is undone, also after the jump was announced", async () => {
    for (const before of [events, [...events, jump]]) {
      await serve(({ id }, say) => {
        for (const event of before) say({ id, event });
        say({ id, error: { code: "EPERM", message: "EPERM: kexec_file_load: not signed" } });
      });
      const [text, json] = await Promise.all([run("update"), run("update", "--json")]);
      assert.deepEqual([text.status, json.status], [1, 1]);
      assert.equal(text.stderr, "holdfast: EPERM: agent: kexec_file_load: not signed\n");
      const message = "EPERM: agent: kexec_file_load: not signed";
      assert.deepEqual(jsonLines(json).at(-1), { error: { code: "EPERM", message } });
      server?.close();
      await once(server as Server, "close");
      rmSync(path, { force: true });
    }
    server = null;
  });

  test("exits with 1 when the agent goes away before the jump, or answers that it is done", async () => {
    await serve(({ id }, say, socket) => {
      say({ id, event: events[1] });
      if (calls.length === 1) socket.destroy();
      else say({ id, result: {} });
    });
    const gone = await run("update");
    assert.equal(gone.status, 1);
    assert.match(gone.stderr, /^holdfast: (the agent closed the connection|.* broke: .*)\n$/);
    const done = await run("update");
    assert.equal(done.status, 1);
    assert.match(done.stderr, /this kernel still runs/);
  });

  test("--dry-run asks for no more than a look", async () => {
    await serve(({ id }, say) => say({ id, result: { ...PLAN, blocked: 1, blockers: ["no"] } }));
    const { status, stdout } = await run("update", "--dry-run");
    assert.equal(status, 1);
    assert.match(stdout, /^blocked {7}no$/m);
    assert.deepEqual(
      calls.map(({ call, dryRun }) => [call, dryRun]),
      [["update", true]],
    );
  });
});

describe("restore", () => {
  test("tells each VM as it comes, and exits with 0 when all are back", async () => {
    await serve(({ id }, say) => {
      const event = { kind: "vm", vm: "vm0", blackoutNs: 2e9, problem: null };
      say({ id, event: { ...event, state: "restoring" } });
      say({ id, event: { ...event, state: "restored" } });
      say({ id, result: RESTORE });
    });
    const { status, stdout, stderr } = await run("restore");
    assert.deepEqual([status, stderr], [0, ""]);
    assert.equal(stdout, "  vm0         2000.00 ms  blackout: it runs again\n3 VMs restored\n");
    assert.deepEqual(calls[0]["abandon"], []);
  });

  test("names what is not back and what was given up, exit status 1", async () => {
    const result: RestoreResult = {
      restored: 1,
      left: 2,
      waiting: [{ vm: "vm1", state: "incoming", problem: "EIO: memory" }],
      abandoned: ["vm3"],
    };
    await serve(({ id }, say) => say({ id, result }));
    const options = ["--timeout", "5", "--abandon", "vm3", "--abandon", "vm4"];
    const [text, json] = await Promise.all([
      run("restore", ...options),
      run("restore", ...options, "--json"),
    ]);
    assert.deepEqual([text.status, json.status], [1, 1]);
    assert.deepEqual(text.stdout.split("\n"), [
      "vm3: given up",
      "vm1: incoming: EIO: memory",
      "and 1 more",
      "1 of 3 VMs restored",
      "",
    ]);
    assert.deepEqual(jsonLines(json), [{ result }]);
    const { abandon, timeoutSeconds } = calls[0];
    assert.deepEqual({ abandon, timeoutSeconds }, { abandon: ["vm3", "vm4"], timeoutSeconds: 5 });
  });
});

test("without an agent every command says where it looked and how to start one, exit status 3", async () => {
  const commands = ["status", "plan", "update", "restore"];
  for (const outcome of await Promise.all(commands.map((command) => run(command)))) {
    assert.equal(outcome.status, 3);
    assert.equal(outcome.stdout, "");
    assert.match(
      outcome.stderr,
      /^holdfast: no agent: there is no socket at .*agent\.sock; start one /,
    );
    assert.equal(outcome.stderr.split("\n").length, 2, "one line");
  }
  const json = await run("status", "--json");
  assert.equal(json.status, 3);
  assert.match(JSON.stringify(jsonLines(json)), /AgentUnreachable/);
  // A process that was killed leaves its socket behind.
  const script = `require("node:net").createServer().listen(process.argv[1], () => process.kill(process.pid, "SIGKILL"))`;
  await once(spawn(process.execPath, ["-e", script, path]), "close");
  const dead = await run("status");
  assert.equal(dead.status, 3);
  assert.match(dead.stderr, /nobody listens at .* any more/);
});

test("an agent that does not keep to the protocol is an error that names the field, exit status 1", async () => {
  const wrong: [message: (id: number) => string, expected: RegExp][] = [
    [(id) => JSON.stringify({ id, result: { ...STATUS, total: -1 } }), /status\.total is -1/],
    [(id) => JSON.stringify({ id, result: { ...STATUS, vms: [{}] } }), /status\.vms\[0\]\.name/],
    [(id) => JSON.stringify({ id, result: null }), /no result|status is/],
    [() => "hello", /not JSON/],
    [() => JSON.stringify({ id: 99, result: STATUS }), /nothing was asked as 99/],
    [() => JSON.stringify({ ask: 1, do: "pause" }), /takes this command for a VMM/],
    [() => "x".repeat(100_000), /a line does not end/],
  ];
  for (const [message, expected] of wrong) {
    const last = message(1).length > 60_000 ? "" : "\n";
    await serve(({ id }, _say, socket) => socket.write(`${message(id)}${last}`));
    const { status, stdout, stderr } = await run("status");
    assert.deepEqual([status, stdout], [1, ""], String(expected));
    assert.match(stderr, /^holdfast: EPROTO: /);
    assert.match(stderr, expected);
    server?.close();
    await once(server as Server, "close");
  }
  server = null;
});

test("a command line that is wrong is refused before anybody is asked, exit status 2", async () => {
  await serve(() => undefined);
  const cases: [args: string[], message: RegExp][] = [
    [
      ["plan", "--without", "memoy"],
      /--without memoy: must be one of memory, state, iommufd, device/,
    ],
    [["plan", "--initrd", "x", "--no-initrd"], /choose one/],
    [["update", "--timeout", "0"], /--timeout 0: must be a whole number from 1 to 3600/],
    [["restore", "--timeout", "-1"], /--timeout -1/],
    [["status", "extra"], /extra/],
    [["update", "--kernel"], /--kernel/],
  ];
  const outcomes = await Promise.all(cases.map(([args]) => run(...args)));
  for (const [i, [args, message]] of cases.entries()) {
    assert.equal(outcomes[i].status, 2, args.join(" "));
    assert.match(outcomes[i].stderr, message);
  }
  assert.equal(calls.length, 0);
});
