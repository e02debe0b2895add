import type { Case } from "../case.ts";
import { ANSWERS } from "./answers.ts";
import { CHUNKS } from "./chunks.ts";
import { FRAMING } from "./framing.ts";
import { HEADS } from "./heads.ts";
import { HOPS } from "./hops.ts";
import { TARGETS } from "./targets.ts";
import { VALID } from "./valid.ts";

export const CASES: readonly Case[] = [...VALID, ...FRAMING, ...CHUNKS, ...HEADS, ...TARGETS, ...HOPS, ...ANSWERS];
