/** A 64-bit integer on the wire: a decimal string, since a JavaScript number loses nanoseconds. `BigInt(value)` or `Number(value)` at the edge. */
export type Int64 = string

/** What may be left out when a message is built: a missing scalar is its zero value, a missing message is absent. */
export type Init<T> = T extends Buffer ? Uint8Array
  : T extends readonly (infer E)[] ? readonly Init<E>[]
  : T extends object ? { readonly [K in keyof T]?: Init<T[K]> | undefined }
  : T
