/** The VM process against the real server and our kernel: all in one thread, channels in memory. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../../abi/uapi/reboot.ts";
import type { AgentState, StateStore } from "../../agent/control/agent-state.ts";
import { AgentServer } from "../../agent/control/server.ts";
import { KernelError } from "../../base/errno.ts";
import { MIB } from "../../base/units.ts";
import type { Channel, Endpoint, EndpointEvent } from "../../host/channel.ts";
import type { Host } from "../../host/host.ts";
import { MappedMemory } from "../../host/mapped-memory.ts";
import { boot } from "../../kernel/boot.ts";
import { RESTORES } from "../../kernel/restores.ts";
import { standardConfig } from "../../machine/embedded/config.ts";
import { InProcessMachine } from "../../machine/embedded/in-process.ts";
import type { KernelImage, KernelModule } from "../../machine/machine.ts";
import type { HugePageAdvice, MemoryVmSpec } from "../../vmm/memory-vm.ts";
import { TestVm, type TestVmEvent } from "./test-vm.ts";

const IMAGE: KernelImage = { name: "next", entry: "next", release: "2", restores: RESTORES };
const COMMAND_LINE = "liveupdate=on";
const TARGET = { kernel: "/boot/next", initrd: null, commandLine: COMMAND_LINE };
const SPEC: MemoryVmSpec = { name: "vm0", memoryBytes: MIB, seed: 3, iommufd: false };
const TURNS_MAX = 400;

/** One end of a connection in memory; descriptors are copied, as SCM_RIGHTS does. */
class End implements Channel, Endpoint {
  readonly peer = { pid: 1, uid: 0, gid: 0, groups: [] };
  readonly #host: Host;
  readonly #inbox: EndpointEvent[] = [{ kind: "open", channel: this }];
  other: End | null = null;
  isOpen = true;

  constructor(host: Host) {
    this.#host = host;
  }

  send(line: string, fds: readonly number[] = []): boolean {
    const copies = fds.map((fd) => this.#host.dup(fd));
    const channel = this.other;
    if (channel?.isOpen !== true) return false;
    channel.#inbox.push({ kind: "line", channel, line, fds: copies });
    return true;
  }

  poll(): readonly EndpointEvent[] {
    return this.#inbox.splice(0);
  }

  close(): void {
    this.isOpen = false;
  }
}

/** One kernel's userspace: the agent, and clients that have their turns whenever it waits. */
class Userspace implements Endpoint {
  readonly server: AgentServer;
  readonly host: Host;
  readonly #ends: End[] = [];
  readonly vms: TestVm[] = [];
  readonly events: TestVmEvent[] = [];

  /** @param agentHost - what the agent sees of the host */
  constructor(host: Host, agentHost: Host = host) {
    this.host = host;
    const store: StateStore = { read: () => null, write: (_state: AgentState) => undefined };
    this.server = AgentServer.start({
      host: agentHost,
      endpoint: this,
      store,
      bootId: "boot",
      group: null,
    });
  }

  connect(): End {
    const [mine, its] = [new End(this.host), new End(this.host)];
    mine.other = its;
    its.other = mine;
    this.#ends.push(its);
    return mine;
  }

  poll(timeoutNs: number): readonly EndpointEvent[] {
    if (timeoutNs > 0) for (const vm of this.vms) vm.turn(0);
    return this.#ends.flatMap((end) => end.poll());
  }

  close(): void {
    for (const end of this.#ends) end.close();
  }

  start(spec: MemoryVmSpec, advise: HugePageAdvice | null = null): TestVm {
    const vm = new TestVm({
      host: this.host,
      spec,
      connect: () => this.connect(),
      say: (event) => this.events.push(event),
      advise,
    });
    this.vms.push(vm);
    return vm;
  }

  /** Turns of everybody until something has happened so often. */
  until(event: TestVmEvent["event"], count = 1): void {
    for (let turn = 0; turn < TURNS_MAX; turn++) {
      if (this.events.filter((one) => one.event === event).length >= count) return;
      for (const vm of this.vms) vm.turn(0);
      this.server.poll(0);
    }
    assert.fail(`no ${event} among ${this.story().join(", ")}`);
  }

  /** @returns what an operator hears last, when the kernel is not replaced */
  update(without: readonly string[] = []): unknown {
    const operator = this.connect();
    operator.send(JSON.stringify({ id: 1, call: "update", target: TARGET, without }));
    this.server.poll(0);
    const heard = operator.poll().at(-1);
    return heard?.kind === "line" ? JSON.parse(heard.line) : heard;
  }

  story(): string[] {
    return this.events.map(({ event }) => event);
  }

  last<E extends TestVmEvent["event"]>(event: E): Extract<TestVmEvent, { event: E }> {
    const found = this.events.filter((one) => one.event === event).at(-1);
    assert.ok(found, `${event} among ${this.story().join(", ")}`);
    return found as Extract<TestVmEvent, { event: E }>;
  }
}

/** Runs `kernels[i]` as the userspace of the i-th kernel; each but the last must jump. */
function runKernels(...kernels: ((host: Host) => void)[]): void {
  let number = 0;
  const module: KernelModule = {
    start(machine, parameters) {
      const host = boot(machine, parameters, { release: String(number) }).spawn();
      kernels[number++](host);
      assert.equal(number, kernels.length, "only the last kernel does not jump");
      return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
    },
  };
  const config = standardConfig({
    memoryBytes: 96 * MIB,
    nics: 0,
    framesPerSecond: 0,
    installed: [IMAGE],
  });
  new InProcessMachine(config, { modules: () => module }).run(module, {
    commandLine: COMMAND_LINE,
    kho: null,
  });
  assert.equal(number, kernels.length);
}

/** A host that does something before its reboot(2). */
function beforeReboot(host: Host, action: () => void): Host {
  return new Proxy(host, {
    get(target, name: keyof Host) {
      const member = Reflect.get(target, name, target) as unknown;
      if (name !== "reboot")
        return typeof member === "function" ? (member.bind(target) as unknown) : member;
      return (command: number) => {
        action();
        return target.reboot(command);
      };
    },
  });
}

describe("a VM process", () => {
  test("goes through two updates beside another, and each proves all of its memory in between", () => {
    const specs = [SPEC, { ...SPEC, name: "vm1", seed: 4, memoryBytes: 2 * MIB }];
    const again = (host: Host) => {
      const userspace = new Userspace(host);
      for (const spec of specs) userspace.start(spec);
      userspace.until("verified", 2);
      userspace.until("finished", 2);
      for (const vm of userspace.vms) assert.equal(vm.isIntact, true);
      const {
        event: _,
        atNs,
        damages,
        ...verified
      } = userspace.events.filter((one) => one.event === "verified")[0] as Extract<
        TestVmEvent,
        { event: "verified" }
      >;
      assert.ok(atNs > 0, `${atNs}`);
      assert.deepEqual(damages, []);
      assert.equal(verified.bytes, specs.find(({ name }) => name === verified.vm)?.memoryBytes);
      return userspace;
    };
    runKernels(
      (host) => {
        const userspace = new Userspace(host);
        for (const spec of specs) userspace.start(spec);
        userspace.until("started", 2);
        assert.deepEqual(userspace.update(), null);
      },
      (host) => again(host).update(),
      (host) => {
        const userspace = again(host);
        assert.equal(userspace.last("registered").update, 2);
        assert.notEqual(userspace.last("retrieved").writes, 0);
        for (const vm of userspace.vms) vm.end();
      },
    );
  });

  test("runs on when the update does not happen, and says so", () => {
    runKernels((host) => {
      const refusing = beforeReboot(host, () => {
        throw new KernelError("EPERM", "reboot", "not today");
      });
      const userspace = new Userspace(host, refusing);
      const vm = userspace.start(SPEC);
      userspace.until("registered");
      const answer = userspace.update() as { error: { code: string } };
      assert.equal(answer.error.code, "EPERM");
      assert.deepEqual(userspace.story(), [
        "started",
        "registered",
        "preserved",
        "paused",
        "resumed",
        "unpreserved",
      ]);
      const { writes } = userspace.last("paused");
      vm.verify();
      userspace.until("verified");
      const now = userspace.last("verified").writes;
      assert.ok(now > writes, `${now} pages written, ${writes} at the pause`);
      assert.equal(vm.isIntact, true);
    });
  });

  test("says where its memory is damaged after an update, and is not intact then", () => {
    runKernels(
      (host) => {
        const memory: MappedMemory[] = [];
        const spoiling = beforeReboot(host, () => {
          memory[0].bytes(5000, 1)[0] ^= 4;
        });
        const userspace = new Userspace(host, spoiling);
        userspace.start(SPEC, (mapping) => memory.push(new MappedMemory(mapping)));
        userspace.until("started");
        userspace.update();
      },
      (host) => {
        const userspace = new Userspace(host);
        const vm = userspace.start(SPEC);
        userspace.until("verified");
        const { damagedPages, damages } = userspace.last("verified");
        assert.equal(damagedPages, 1);
        assert.deepEqual(
          damages.map(({ offsetBytes, expected, found }) => [offsetBytes, expected ^ found]),
          [[5000, 4]],
        );
        assert.equal(vm.isIntact, false);
      },
    );
  });

  test("says when it comes to a damage while it runs, once", () => {
    runKernels((host) => {
      const userspace = new Userspace(host);
      const memory: MappedMemory[] = [];
      const vm = userspace.start(SPEC, (mapping) => memory.push(new MappedMemory(mapping)));
      userspace.until("registered");
      memory[0].bytes(MIB - 1, 1)[0] ^= 4;
      userspace.until("damaged");
      for (let turn = 0; turn < 20; turn++) vm.turn(0);
      assert.equal(userspace.story().filter((event) => event === "damaged").length, 1);
      assert.equal(userspace.last("damaged").damagedPages, 1);
      assert.equal(vm.isIntact, false);
    });
  });

  test("goes on without its iommufd when the update is told to", () => {
    runKernels(
      (host) => {
        const userspace = new Userspace(host);
        userspace.start({ ...SPEC, iommufd: true });
        userspace.until("registered");
        userspace.update(["iommufd"]);
      },
      (host) => {
        const userspace = new Userspace(host);
        userspace.start({ ...SPEC, iommufd: true });
        userspace.until("finished");
        assert.deepEqual(userspace.last("retrieved").without, ["iommufd"]);
        userspace.until("verified");
        assert.equal(userspace.last("verified").damagedPages, 0);
      },
    );
  });

  test("ends when it can neither begin nor be restored", () => {
    runKernels((host) => {
      const userspace = new Userspace(host);
      userspace.start({ ...SPEC, memoryBytes: 1024 * MIB });
      assert.throws(() => userspace.until("started"), { code: "ENOMEM" });
    });
    runKernels(
      (host) => {
        const userspace = new Userspace(host);
        userspace.start(SPEC);
        userspace.until("started");
        userspace.update();
      },
      (host) => {
        const userspace = new Userspace(host);
        const vm = userspace.start(SPEC, () => {
          throw new KernelError("EINVAL", "madvise", "no huge pages");
        });
        assert.throws(() => userspace.until("retrieved"), { code: "EINVAL" });
        // The session is still there for a VMM that does it right.
        userspace.vms.splice(0);
        vm.end();
        userspace.start(SPEC);
        userspace.until("finished");
        userspace.until("verified");
        assert.equal(userspace.last("verified").damagedPages, 0);
      },
    );
  });
});
