import { mkdir, readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { failedPrecondition, internal, invalidArgument, messageOf } from '../errors/cri-error.ts'
import { writeFileAtomic } from '../linux/atomic-file.ts'
import { parseConflist } from './conflist.ts'
import { GoTemplate } from './go-template.ts'

/** The file that a template is rendered into, as containerd names it. */
export const generatedConflist = '10-containerd-net.conflist'

/** Pod CIDRs as the kubelet sends them, checked and without blanks. INVALID_ARGUMENT names the wrong one. */
export function checkedCidrs(cidrs: readonly string[]): string[] {
  return cidrs.map((cidr) => {
    const text = cidr.trim()
    const [address = '', bits = '', ...more] = text.split('/')
    const family = address.includes('%') ? 0 : isIP(address)
    if (family === 0 || more.length > 0 || !/^\d{1,3}$/.test(bits) || Number(bits) > (family === 4 ? 32 : 128)) {
      throw invalidArgument(`pod CIDR ${JSON.stringify(text)} is no network such as 10.244.1.0/24 or fd00:10:244::/64`)
    }
    return text
  })
}

/** Renders the template for these CIDRs into `<confDir>/10-containerd-net.conflist`, atomically, and returns that path. */
export async function writeConflistFromTemplate(templatePath: string, confDir: string, cidrs: readonly string[]): Promise<string> {
  let source: string
  try {
    source = await readFile(templatePath, 'utf8')
  } catch (error) {
    throw failedPrecondition(`cannot read the CNI configuration template (conf_template): ${messageOf(error)}`, { reason: 'CNI_TEMPLATE', cause: error })
  }
  const families = cidrs.map((cidr) => (cidr.includes(':') ? 6 : 4))
  const routes = [...(families.includes(4) ? ['0.0.0.0/0'] : []), ...(families.includes(6) ? ['::/0'] : [])]
  let text: string
  try {
    text = new GoTemplate(source).render({ PodCIDR: cidrs[0] ?? '', PodCIDRRanges: cidrs, Routes: routes })
  } catch (error) {
    throw failedPrecondition(`CNI configuration template ${templatePath}, ${messageOf(error)}`, { reason: 'CNI_TEMPLATE', cause: error })
  }
  try {
    parseConflist(text)
  } catch (error) {
    throw failedPrecondition(`what CNI configuration template ${templatePath} makes ${messageOf(error)}; correct the template`, { reason: 'CNI_TEMPLATE', cause: error })
  }
  const file = join(confDir, generatedConflist)
  try {
    await mkdir(confDir, { recursive: true, mode: 0o755 })
    await writeFileAtomic(file, text, { mode: 0o644 })
  } catch (error) {
    throw internal(`cannot write ${file}: ${messageOf(error)}`, { reason: 'CNI_TEMPLATE', cause: error })
  }
  return file
}
