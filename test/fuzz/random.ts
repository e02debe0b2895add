import { Random as Seeded } from "../../src/demo/random.ts";

/** Random choices that a seed repeats. */
export class Random extends Seeded {
  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }

  /** Octets as Latin-1 text. */
  octets(length: number): string {
    let text = "";
    for (let i = 0; i < length; i++) text += String.fromCharCode(this.below(256));
    return text;
  }
}
