import { CriError } from '../errors/cri-error.ts'
import type { ImageRef } from '../registry-mirrors/image-ref.ts'
import { type Arguments, UsageError } from './command.ts'

/** The image that a command was given. Throws a UsageError when it is missing or no image name. */
export async function imageArgument(command: string, { positionals }: Arguments): Promise<ImageRef> {
  const [name] = positionals
  if (name === undefined) throw new UsageError(`${command}: name an image, such as registry.k8s.io/pause:3.10`)
  const { parseImageRef } = await import('../registry-mirrors/image-ref.ts')
  try {
    return parseImageRef(name)
  } catch (error) {
    if (!(error instanceof CriError)) throw error
    const scheme = /^[a-z][a-z0-9+.-]*:\/\//i.exec(name)?.[0]
    throw new UsageError(`${command}: ${error.message}${scheme === undefined ? '' : `; write it without ${scheme}`}`, { cause: error })
  }
}
