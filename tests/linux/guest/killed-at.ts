/**
 * Loaded before a program (`node --import`): ends it as SIGKILL does when it comes to a point of its work, so that a test hits
 * the same point every time.
 *
 * KILLED_AT names the point: `MODULE#Class.method:before` or `:after`, with a module of this repository without its ending and a
 * method of the class or of its instances; `:after:2` at the second call. Every process of the same point dies there.
 * @module
 */
import { writeSync } from "node:fs";

const POINT = /^([\w/-]+)#(\w+)\.(\w+):(before|after)(?::(\d+))?$/;
const STDERR = 2;

type Method = (this: unknown, ...args: unknown[]) => unknown;

const point = process.env["KILLED_AT"] ?? "";
const [, path, className, method, when, nth = "1"] = POINT.exec(point) ?? [];
if (path === undefined) throw new Error(`KILLED_AT=${point}: must be like ${POINT}`);
const module: Readonly<Record<string, unknown>> = await import(
  new URL(`../../../${path}.js`, import.meta.url).href
);
const target = ownerOf(module[className]);
const original = target[method];
let left = Number(nth);

target[method] = function (...args) {
  if (when === "before") passed();
  const result = original.apply(this, args);
  if (when === "after") passed();
  return result;
};

/** A method that is not there any more must not make a test pass. */
function ownerOf(value: unknown): Record<string, Method> {
  const owners = typeof value === "function" ? [value, value.prototype] : [];
  const owner = owners.find((one) => Object.hasOwn(one ?? {}, method));
  if (owner === undefined) throw new Error(`KILLED_AT=${point}: there is no such method`);
  return owner;
}

function passed(): void {
  left--;
  if (left > 0) return;
  writeSync(STDERR, `killed at ${point}\n`);
  process.kill(process.pid, "SIGKILL");
}
