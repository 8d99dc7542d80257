import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { CASES } from "./suite.ts";

/** Linux 7.3 tools/testing/selftests/liveupdate: the tests of liveupdate.c, and the programs that jump. */
const KSELFTESTS = [
  "basic_open_close",
  "create_distinct_sessions",
  "create_duplicate_session",
  "create_session_empty_name",
  "create_session_no_null_termination",
  "exclusive_open",
  "get_session_name",
  "get_session_name_max_length",
  "luo_kexec_simple.c",
  "luo_multi_session.c",
  "luo_stress_files.c",
  "luo_stress_sessions.c",
  "preserve_complex_scenario",
  "preserve_many_files",
  "preserve_many_sessions",
  "preserve_memfd",
  "preserve_multiple_memfds",
  "preserve_unsupported_fd",
  "prevent_double_preservation",
];

describe("the conformance suite", () => {
  test("names each case once, and each has something to do in its last stage", () => {
    const names = CASES.map(({ name }) => name);
    assert.deepEqual(names, [...new Set(names)]);
    for (const { name, stages } of CASES) assert(stages.at(-1), name);
  });

  test("has a case for each of upstream's selftests", () => {
    const covered = CASES.flatMap(({ kselftests }) => kselftests ?? []).sort();
    assert.deepEqual(covered, KSELFTESTS);
  });
});
