import assert from "node:assert/strict";
import { test } from "node:test";
import { booleanParameter, parameterValues } from "./kernel-parameters.ts";

test("parameterValues() splits a command line as the kernel does", () => {
  const cases: [commandLine: string, name: string, values: (string | null)[]][] = [
    ["", "a", []],
    ["a", "a", [null]],
    ["a=", "a", [""]],
    ["a=1 b=2\ta=3\n", "a", ["1", "3"]],
    ["a=1=2", "a", ["1=2"]],
    ['a="1 b=2" b=3', "b", ["3"]],
    ['a="1 2" b', "a", ["1 2"]],
    ['"a=1 2" b', "a", ["1 2"]],
    ['a="open b=3', "b", []],
    ["a_b=1 a-b=2", "a-b", ["1", "2"]],
    ["xa=1 ax=2", "a", []],
    ["a=1 -- a=2", "a", ["1"]],
    ["a=1 --a=2", "a", ["1"]],
  ];
  for (const [commandLine, name, values] of cases)
    assert.deepEqual(parameterValues(commandLine, name), values, commandLine);
});

test("booleanParameter() understands the kernel's words for on and off, and takes the last of them", () => {
  for (const value of ["1", "y", "Y", "yes", "t", "true", "on", "ON", "one"])
    assert.equal(booleanParameter(`p=${value}`, "p"), true, value);
  for (const value of ["0", "n", "no", "N", "f", "false", "off", "OFF", "d"])
    assert.equal(booleanParameter(`p=${value}`, "p"), false, value);
  for (const commandLine of ["", "p", "p=", "p=o", "p=2", "p=e", "q=1", "p= 1"])
    assert.equal(booleanParameter(commandLine, "p"), null, commandLine);
  assert.equal(booleanParameter("p=1 p=0", "p"), false);
  assert.equal(
    booleanParameter("p=0 p=1 p=x", "p"),
    true,
    "what cannot be understood changes nothing",
  );
});
