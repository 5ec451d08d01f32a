import { randomUUID } from 'node:crypto'
import { Client, type MethodDefinition, Metadata, credentials } from '@grpc/grpc-js'
import { containerdProtos, serviceDefinition } from '../src/generated/protos.ts'

/** Lets containerd collect what no image, container or lease needs any more, and waits for the end of that: deleting a lease can be asked to. */
export async function collectGarbage(socket: string): Promise<void> {
  const client = new Client(`unix://${socket}`, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 })
  const methods = serviceDefinition(containerdProtos(), 'containerd.services.leases.v1.Leases')
  const metadata = new Metadata()
  metadata.set('containerd-namespace', 'k8s.io')
  const call = async (method: MethodDefinition<object, object> | undefined, request: object): Promise<void> => {
    if (method === undefined) throw new TypeError('the wire contract of the lease service lacks a method')
    await new Promise<void>((resolve, reject) => {
      client.makeUnaryRequest(method.path, method.requestSerialize, method.responseDeserialize, request, metadata, { deadline: Date.now() + 120_000 }, (error) => {
        if (error === null) resolve()
        else reject(error)
      })
    })
  }
  try {
    const id = `bench-${randomUUID()}`
    await call(methods['Create'], { id, labels: {} })
    await call(methods['Delete'], { id, sync: true })
  } finally {
    client.close()
  }
}
