/**
 * Runs branches side by side and waits for all of them, also when one fails: what the others made must be known before it is undone.
 * The first failure aborts the signal that the branches were given, and is what is thrown.
 */
export async function join<T extends readonly unknown[]>(signal: AbortSignal, branches: { readonly [K in keyof T]: (signal: AbortSignal) => Promise<T[K]> }): Promise<T> {
  const stop = new AbortController()
  const both = AbortSignal.any([signal, stop.signal])
  let failure: { readonly error: unknown } | undefined
  const results = await Promise.all(branches.map(async (branch) => {
    try {
      return await branch(both)
    } catch (error) {
      failure ??= { error }
      stop.abort(error)
      return undefined
    }
  }))
  if (failure !== undefined) throw failure.error
  return results as unknown as T
}

/** Waits for all of them: none is stopped by the failure of another. Throws the first failure in their order. */
export async function allOf(works: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(works)) if (result.status === 'rejected') throw result.reason
}
