import { type ConfigFile, originOf } from './config-files.ts'
import type { Origin } from './diagnostics.ts'
import { isTable, valueAt } from './toml-tree.ts'

/** What containerd 2.1 and later are told about their own pulls outside the CRI plugin's sections, for what cri-shim pulls in their place. */
export interface OwnPulls {
  /** Of the transfer plugin. */
  maxConcurrentDownloads?: { readonly value: number; readonly origin: Origin }
  /** Proxy snapshotters that are to be told which image a layer is of, by name. */
  readonly annotated: Map<string, Origin>
}

const transferPlugin = 'io.containerd.transfer.v1.local'

/** Reads that from one file over what earlier files said. What is of another type is containerd's to refuse. */
export function collectOwnPulls(file: ConfigFile, pulls: OwnPulls): void {
  // The CRI plugin of 1.x has nothing to do with the transfer plugin.
  if ((file.version ?? 1) < 3) return
  const downloads = valueAt(file.tree, 'plugins', transferPlugin, 'max_concurrent_downloads')
  if (typeof downloads === 'number' && Number.isInteger(downloads) && downloads >= 0) {
    pulls.maxConcurrentDownloads = { value: downloads, origin: originOf(file, ['plugins', transferPlugin, 'max_concurrent_downloads']) }
  }
  const proxies = valueAt(file.tree, 'proxy_plugins')
  for (const name of isTable(proxies) ? Object.keys(proxies) : []) {
    const path = [name, 'exports', 'enable_remote_snapshot_annotations']
    const value = valueAt(proxies, ...path)
    if (value === 'true') pulls.annotated.set(name, originOf(file, ['proxy_plugins', ...path]))
    else if (value !== undefined) pulls.annotated.delete(name)
  }
}
