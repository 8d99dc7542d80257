import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import { SerialPort } from "./serial-file.ts";

function portWith(...input: string[]) {
  const output: string[] = [];
  const serial = {
    readLine: () => input.shift() ?? null,
    writeLine: (line: string) => output.push(line),
  };
  return { port: new SerialPort(serial), input, output };
}

const encode = (text: string) => new TextEncoder().encode(text);

test("read() gives one line at most, the rest of it to whoever reads next, and EAGAIN when none has come", () => {
  const { port, input } = portWith("größe", "two");
  const first = port.open();
  const other = port.open();
  const target = new Uint8Array(4);
  assert.equal(first.read(target), 4);
  assert.equal(other.read(target.subarray(0, 0)), 0);
  const rest = new Uint8Array(100);
  const length = other.read(rest);
  assert.equal(
    new TextDecoder().decode(Buffer.concat([target, rest.subarray(0, length)])),
    "größe\n",
  );
  assert.deepEqual(input, ["two"]);
  assert.equal(new TextDecoder().decode(rest.subarray(0, first.read(rest))), "two\n");
  assert.throws(
    () => first.read(rest),
    (error) => isKernelError(error, "EAGAIN"),
  );
});

test("write() sends whole lines, however they are cut, and keeps what has no newline yet", () => {
  const { port, output } = portWith();
  const file = port.open();
  const bytes = encode("größe\nzwei\n\ndr");
  for (const byte of bytes) assert.equal(file.write(Uint8Array.of(byte)), 1);
  assert.deepEqual(output, ["größe", "zwei", ""]);
  file.write(encode("ei\n"));
  assert.deepEqual(output.slice(3), ["drei"]);
  assert.throws(
    () => file.write(Uint8Array.of(0x61, 0x0a, 0xff, 0x0a)),
    (error) => isKernelError(error, "EINVAL"),
  );
  file.write(encode("vier\n"));
  assert.deepEqual(output.slice(4), ["vier"]);
});
