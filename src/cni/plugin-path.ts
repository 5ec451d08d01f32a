import { statSync } from 'node:fs'
import { join } from 'node:path'

/** Where a plugin's binary is; otherwise what to tell the user. */
export type PluginLookup = { readonly path: string } | { readonly path: undefined; readonly problem: string }

/**
 * Looks a plugin up in the directories, in order (CNI specification, section 3). A handful of stat calls on the node's own disk: not
 * worth a trip to another thread, and always true to what is there now.
 */
export function findPlugin(type: string, binDirs: readonly string[]): PluginLookup {
  for (const dir of binDirs) {
    const path = join(dir, type)
    let found
    try {
      found = statSync(path, { throwIfNoEntry: false })
    } catch {
      continue
    }
    if (found === undefined || !found.isFile()) continue
    if ((found.mode & 0o111) === 0) return { path: undefined, problem: `plugin binary ${path} is not executable: chmod 0755 ${path}` }
    return { path }
  }
  const where = binDirs.length === 0 ? 'no directory (bin_dirs is empty)' : binDirs.join(', ')
  return {
    path: undefined,
    problem: `plugin binary ${type} not found in ${where}: install the CNI plugins there (package containernetworking-plugins, or your network add-on), or add their directory to bin_dirs`,
  }
}
