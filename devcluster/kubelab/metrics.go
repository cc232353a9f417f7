package main

import (
	"github.com/spf13/cobra"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/kubernetes/pkg/generated/openapi"
	"sigs.k8s.io/metrics-server/cmd/metrics-server/app/options"
	"sigs.k8s.io/metrics-server/pkg/api"
)

// metricsCommand runs metrics-server: what nodes and pods use, as the API that autoscalers ask.
//
// The description of its types (OpenAPI) that this version has was made for Kubernetes 1.33, which named them otherwise:
// without one that fits its API server ends at once. Kubernetes' own has these types, too. The version after it would
// raise what the other components are built from.
func metricsCommand() *cobra.Command {
	opts := options.NewOptions()
	command := &cobra.Command{Use: "metrics-server", RunE: func(*cobra.Command, []string) error {
		if problems := opts.Validate(); len(problems) > 0 {
			return problems[0]
		}
		config, err := opts.ServerConfig()
		if err != nil {
			return err
		}
		namer, info := openapinamer.NewDefinitionNamer(api.Scheme), config.Apiserver.OpenAPIConfig.Info
		config.Apiserver.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
		config.Apiserver.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
		config.Apiserver.OpenAPIConfig.Info, config.Apiserver.OpenAPIV3Config.Info = info, info
		server, err := config.Complete()
		if err != nil {
			return err
		}
		return server.RunUntil(genericapiserver.SetupSignalHandler())
	}}
	flags := opts.Flags()
	for _, set := range flags.FlagSets {
		command.Flags().AddFlagSet(set)
	}
	return command
}
