/** Puts an entry into a map as its newest; the oldest goes when there are more than `max`. */
export function keepNewest<K, V>(map: Map<K, V>, key: K, value: V, max: number): void {
  map.delete(key)
  map.set(key, value)
  const oldest = map.keys().next()
  if (map.size > max && oldest.done !== true) map.delete(oldest.value)
}
