/**
 * DMA between any two stores of a kernel: hosts drawn from seeds, each with all invariants at all points.
 *
 * To replay one: HOLDFAST_SEED=123 npm test -- tests/sim/random-hosts
 */
import { test } from "node:test";
import { randomHost } from "../support/random-host.ts";
import { simulate } from "../support/simulated-host.ts";
import { FAILED_SEEDS } from "./seeds.ts";

const SEEDS = 250;
const only = process.env["HOLDFAST_SEED"];

function run(seed: number): void {
  try {
    simulate(randomHost(seed));
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    throw new Error(
      `seed ${seed} fails; replay it with HOLDFAST_SEED=${seed} npm test -- tests/sim/random-hosts, and add it to tests/sim/seeds.ts: ${what}`,
      { cause: error },
    );
  }
}

if (only !== undefined) test(`the host of seed ${only} keeps its VMs`, () => run(Number(only)));
else {
  for (const seed of FAILED_SEEDS)
    test(`the host of seed ${seed}, which has failed once, keeps its VMs`, () => run(seed));
  test(`the hosts of ${SEEDS} seeds keep their VMs`, () => {
    for (let seed = 1; seed <= SEEDS; seed++) run(seed);
  });
}
