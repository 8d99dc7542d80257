/**
 * A kernel that only switches domains; its URL's query is the plan. `broken` names what is wrong with it: "flush" leaves
 * caches as they are, "gap" blocks the device between old tables and new ones, "hole" forgets a page of the new ones.
 * @module
 */
import { boot } from "../../src/kernel/boot.ts";
import { InvalidationQueue } from "../../src/kernel/iommu/invalidation-queue.ts";
import { RemappingUnit } from "../../src/kernel/iommu/remapping-unit.ts";
import type { KernelModule } from "../../src/machine/machine.ts";
import { switchDomains } from "./domain-switcher.ts";

const { searchParams } = new URL(import.meta.url);
const broken = searchParams.get("broken");

export const start: KernelModule["start"] = (machine, parameters) => {
  if (broken === "flush") {
    InvalidationQueue.prototype.contextDevice = () => undefined;
    InvalidationQueue.prototype.iotlbDomain = () => undefined;
  }
  if (broken === "gap")
    RemappingUnit.prototype.switchEntry = function (bdf, top, did) {
      this.clearEntry(bdf, did);
      this.setEntry(bdf, top, this.defaultLevels, did);
    };
  return switchDomains(boot(machine, parameters, { release: "switching" }).spawn(), {
    switches: Number(searchParams.get("switches")),
    seed: Number(searchParams.get("seed")),
    hasHole: broken === "hole",
  });
};
