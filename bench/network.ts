import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Containerd } from '../test/fixtures/containerd.ts'
import { command, output } from '../test/fixtures/command.ts'

/** Gives a private containerd the CNI chain that the measurements are made with: bridge, firewall, tuning, portmap. It counts from its next start on. */
export async function writeCniChain({ cniConfDir, network }: Containerd): Promise<void> {
  await writeFile(join(cniConfDir, '10-test.conflist'), JSON.stringify({
    cniVersion: '0.4.0',
    name: network.name,
    plugins: [
      {
        type: 'bridge',
        bridge: network.bridge,
        isGateway: true,
        ipMasq: true,
        hairpinMode: true,
        ipam: { type: 'host-local', dataDir: network.ipamDir, ranges: [[{ subnet: network.subnet }]], routes: [{ dst: '0.0.0.0/0' }] },
      },
      { type: 'firewall', backend: 'iptables' },
      { type: 'tuning', sysctl: { 'net.core.somaxconn': '512' } },
      { type: 'portmap', capabilities: { portMappings: true } },
    ],
  }, undefined, 2))
}

interface Chain {
  readonly table: string
  readonly name: string
}

interface Rules {
  readonly chains: readonly Chain[]
  /** `-A CHAIN …` by table. */
  readonly rules: readonly { readonly table: string; readonly words: readonly string[]; readonly text: string }[]
}

async function readRules(): Promise<Rules> {
  const chains: Chain[] = []
  const rules: { table: string; words: string[]; text: string }[] = []
  let table = ''
  for (const line of (await output('iptables-save', [])).split('\n')) {
    if (line.startsWith('*')) table = line.slice(1)
    const chain = /^:(\S+) - /.exec(line)?.[1] // a built-in chain has a policy in place of the hyphen
    if (chain !== undefined) chains.push({ table, name: chain })
    if (line.startsWith('-A ')) {
      const words = [...line.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(([, quoted, bare]) => (quoted === undefined ? bare ?? '' : quoted.replaceAll(/\\(.)/g, '$1')))
      rules.push({ table, words, text: line })
    }
  }
  return { chains, rules }
}

/** Not those of one pod, which have a hash for a name and are that pod's affair. */
const shared = /^CNI-(?!(DN-)?[0-9a-f]{10,}$)/

export interface HostNetwork {
  /**
   * Removes the iptables chains that CNI plugins share between all pods (CNI-FORWARD, CNI-ADMIN), if they were not there at the start and hold
   * no rule for an address: that would be somebody else's pod. Returns what is different from the start, a line for each chain or setting.
   */
  restore(): Promise<string[]>
}

/** Remembers the host's iptables chains and forwarding, which CNI plugins change for all pods together. */
export async function rememberHostNetwork(): Promise<HostNetwork> {
  const before = await readRules()
  const forwardingFile = '/proc/sys/net/ipv4/ip_forward'
  const forwarding = await readFile(forwardingFile, 'utf8')
  const newChains = ({ chains }: Rules): Chain[] => chains.filter(({ table, name }) => shared.test(name) && !before.chains.some((old) => old.table === table && old.name === name))
  return {
    restore: async () => {
      const now = await readRules()
      const unused = newChains(now).filter(({ table, name }) => !now.rules.some((rule) => rule.table === table && rule.words[1] === name && /\s-[sd] /.test(rule.text)))
      for (const { table, words } of now.rules) {
        const leads = unused.some((chain) => chain.table === table && (words[1] === chain.name || words.at(words.indexOf('-j') + 1) === chain.name))
        if (leads) await command('iptables', ['-t', table, '-D', ...words.slice(1)])
      }
      for (const { table, name } of unused) await command('iptables', ['-t', table, '-X', name])
      const left = newChains(await readRules()).map(({ table, name }) => `iptables chain ${name} in table ${table}`)
      if (forwarding.trim() === '0' && (await readFile(forwardingFile, 'utf8')).trim() === '1') left.push('net.ipv4.ip_forward is 1: the bridge plugin sets it for every pod network, and turning it off could cut off other pods')
      return left
    },
  }
}
