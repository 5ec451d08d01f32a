import type { TomlTable, TomlValue } from 'smol-toml'

export function isTable(value: TomlValue | undefined): value is TomlTable {
  return typeof value === 'object' && !Array.isArray(value) && !(value instanceof Date)
}

/** What is under a path of names; undefined when there is nothing. */
export function valueAt(tree: TomlValue | undefined, ...path: readonly string[]): TomlValue | undefined {
  return path.reduce<TomlValue | undefined>((value, name) => (isTable(value) ? value[name] : undefined), tree)
}
