/**
 * Whatever clients do, in whatever order, and whoever is killed: the server keeps its promises.
 *
 * Each seed is a world in which operators, VMMs, strangers, kills, kexecs and failing calls take turns, also while the agent
 * waits in the middle of an update. After each turn, and at the end when everybody has gone, the invariants are checked.
 * @module
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import { Prng } from "../../base/prng.ts";
import { IMAGE, type Operator, type ToyVmm, World } from "./test-rig.ts";

const SEEDS = 25;
const TURNS = 120;
const NAMES = ["vm0", "vm1", "vm2", "vm3"];
const UIDS = [0, 1001];
const TARGET = { kernel: IMAGE, initrd: null, commandLine: "liveupdate=on" };
const GARBAGE = [
  "",
  "{",
  "[]",
  '{"id": 0, "call": "status"}',
  '{"id": 900001, "call": "restored"}',
  '{"answer": 1, "result": {}}',
  '{"id": 9007199254740993, "call": "status"}',
  '{"id": 900001, "call": "register", "fds": 1, "vm": "vm0", "state": "restored", "resources": []}',
  '{"id": 900001, "call": "status", "from": 1e9}',
];

interface Called {
  readonly operator: Operator;
  readonly id: number;
  /** Agents are counted: one that is killed answers nothing. */
  readonly agent: number;
}

class Chaos {
  readonly #prng: Prng;
  readonly world: World;
  #agents = 0;
  readonly #calls: Called[] = [];
  /** VMs whose memory may be lost: they were given up, or their VMMs were killed after their guests had run. */
  readonly #expendable = new Set<string>();
  #jumps = 0;
  #isNested = false;

  constructor(seed: number) {
    this.#prng = new Prng(seed);
    this.world = new World({ hasCustody: true, timeoutNs: 5e9 });
    this.world.onIdle = () => this.#idle();
    this.#startAgent();
  }

  get jumps(): number {
    return this.#jumps;
  }

  turn(): void {
    this.#act();
    if (this.world.settle(1 + this.#prng.below(4))) {
      this.#jumps++;
      this.#calls.length = 0;
      this.#startAgent();
    }
    this.check();
  }

  /** Everybody lets everything come to an end. */
  end(): void {
    const { world } = this;
    world.fake.fails = () => null;
    for (const vm of world.vms) {
      vm.hangs = false;
      vm.before = () => undefined;
      vm.hasIommufd = false;
    }
    if (world.server === null) this.#startAgent();
    if (world.settle(120)) {
      this.#calls.length = 0;
      this.#startAgent();
      world.settle(60);
    }
    this.check();
    for (const { operator, id, agent } of this.#calls) {
      if (operator.isClosed || agent !== this.#agents || !operator.channel.isOpen) continue;
      assert.equal(operator.answers(id).length, 1, `call ${id} is answered`);
    }
    for (const vm of world.vms) vm.kill();
    for (const operator of world.operators) operator.close();
    world.vms = [];
    world.operators = [];
    world.settle(3);
    const held = world.server?.agent.restoration?.left.filter(({ state }) => state !== "waiting");
    world.killAgent();
    assert.equal(
      world.fake.openFiles,
      held?.length,
      "what is open is sessions in custody, of VMs that are not back",
    );
  }

  check(): void {
    const { world } = this;
    const alive = world.vms.filter(({ isAlive }) => isAlive);
    for (const name of NAMES) {
      const holders = alive.filter((vm) => vm.name === name && vm.client.state !== "starting");
      assert.ok(holders.length <= 1, `${name} has ${holders.length} VMMs`);
    }
    for (const { operator, id } of this.#calls)
      assert.ok(operator.answers(id).length <= 1, `call ${id} is answered once`);
    for (const name of world.fake.discarded)
      assert.ok(this.#expendable.has(name), `memory of ${name} was thrown away`);
    for (const vm of alive)
      if (vm.client.state === "running" && !vm.hangs)
        assert.ok(vm.process.fds.size <= 1, `${vm.name} has let go of its session`);
  }

  #startAgent(): void {
    this.#agents++;
    this.world.startAgent();
  }

  /** While the agent waits, the others go on, and little else happens. */
  #idle(): void {
    if (this.#isNested) return;
    this.#isNested = true;
    if (this.#prng.oneIn(3)) this.#disturb();
    this.world.turnAll();
    this.#isNested = false;
  }

  #act(): void {
    const { world } = this;
    switch (this.#prng.below(14)) {
      case 0:
      case 1:
      case 2:
        if (world.vms.length < 6) this.#startVm();
        return;
      case 3:
      case 4:
        this.#call("update", {
          target: TARGET,
          dryRun: this.#prng.oneIn(4),
          timeoutSeconds: 1 + this.#prng.below(9),
        });
        return;
      case 5:
        this.#call("restore", { timeoutSeconds: 1 + this.#prng.below(9) });
        return;
      case 6: {
        const name = this.#pick(NAMES);
        this.#expendable.add(name);
        this.#call("restore", { timeoutSeconds: 1, abandon: [name] });
        return;
      }
      case 7:
        if (world.server !== null) world.killAgent();
        return;
      case 8:
        world.fake.fails = this.#prng.oneIn(2)
          ? () => null
          : (call) =>
              call !== "open /dev/liveupdate" && this.#prng.oneIn(40) ? this.#errno() : null;
        return;
      default:
        if (world.server === null) this.#startAgent();
        this.#disturb();
    }
  }

  /** What can also happen in the middle of an update. */
  #disturb(): void {
    const { world } = this;
    const vm = world.vms.length > 0 ? this.#pick(world.vms) : null;
    switch (this.#prng.below(9)) {
      case 0:
        if (vm !== null) this.#kill(vm);
        return;
      case 1:
        if (vm !== null) vm.hangs = !vm.hangs;
        return;
      case 2:
        if (vm !== null) vm.workTurns = this.#prng.below(4);
        return;
      case 3:
        if (vm !== null) vm.hasIommufd = !vm.hasIommufd;
        vm?.client.resourcesChanged();
        return;
      case 4:
        if (vm !== null)
          vm.before = (task) => {
            const mayFail = !["begin", "unpreserve", "resume", "finished"].includes(task);
            if (mayFail && this.#prng.oneIn(8))
              throw new KernelError(this.#errno(), task, "injected");
          };
        return;
      case 5:
        this.#call("status", {});
        return;
      case 6:
        this.#babble();
        return;
      case 7:
        vm?.process.channels.at(-1)?.send(this.#pick(GARBAGE));
        return;
      default:
        if (world.operators.length > 0) this.#pick(world.operators).close();
        world.operators = world.operators.filter(({ process }) => !process.hasEnded);
    }
  }

  #startVm(): void {
    const vm = this.world.startVm(this.#pick(NAMES), this.#pick(UIDS));
    vm.workTurns = this.#prng.below(3);
  }

  #kill(vm: ToyVmm): void {
    const { state } = vm.client;
    if (vm.runs && (state === "restoring" || state === "restored")) this.#expendable.add(vm.name);
    vm.kill();
    this.world.vms = this.world.vms.filter(({ isAlive }) => isAlive);
  }

  #operator(): Operator | null {
    const { world } = this;
    if (world.server === null) return null;
    const open = world.operators.filter(({ isClosed, channel }) => !isClosed && channel.isOpen);
    return open.length > 0 && this.#prng.oneIn(2) ? this.#pick(open) : world.operator(0);
  }

  #call(name: string, fields: object): void {
    const operator = this.#operator();
    if (operator === null) return;
    const id = operator.call(name, fields);
    this.#calls.push({ operator, id, agent: this.#agents });
  }

  /** A stranger says something wrong, with a descriptor at times. */
  #babble(): void {
    if (this.world.server === null) return;
    const stranger = this.world.operator(this.#pick(UIDS));
    const { host } = stranger.process;
    const line = this.#pick(GARBAGE);
    try {
      const fd = this.#prng.oneIn(2) ? host.memfdCreate("x", 0) : null;
      stranger.channel.send(line, fd === null ? [] : [fd]);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
    }
    if (this.#prng.oneIn(2)) stranger.close();
  }

  #errno(): ErrnoCode {
    return this.#pick(["EIO", "ENOMEM", "EBUSY", "EMFILE"] as const);
  }

  #pick<T>(from: readonly T[]): T {
    return from[this.#prng.below(from.length)];
  }
}

test("whatever clients do: one VMM for a VM, one answer for a call, no session and no memory lost", () => {
  const only = process.env.HOLDFAST_SEED;
  let jumps = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    if (only !== undefined && Number(only) !== seed) continue;
    const chaos = new Chaos(seed);
    try {
      for (let turn = 0; turn < TURNS; turn++) chaos.turn();
      chaos.end();
    } catch (error) {
      console.error(`HOLDFAST_SEED=${seed}`);
      throw error;
    }
    jumps += chaos.jumps;
  }
  if (only === undefined) assert.ok(jumps > SEEDS, `${jumps} jumps: enough to mean something`);
});
